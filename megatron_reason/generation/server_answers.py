"""What vLLM's servers answer, read strictly: another form counts as the server's death.

No request is made here, and nothing is known of weights but their names. Not here: who asks, and
what follows from a death (`server_engine.py`).
"""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from megatron_reason.errors import EngineDiedError
from megatron_reason.schema.records import Finish

GENERATE = "inference/v1/generate"
"""Where token ids are asked and answered."""
RPC = "collective_rpc"
"""Calls a method of `vllm_transfer.WorkerExtension` on every worker."""
RESET = "reset_prefix_cache"
"""Where keys and values of prompts are forgotten."""

Parsed = TypeVar("Parsed", bound=BaseModel)


class Reset(BaseModel):
    """Of a cache."""

    success: bool


class Told(BaseModel):
    """What a server says of a token."""

    logprob: float


class Logprobs(BaseModel):
    """Of each token of an answer."""

    content: tuple[Told, ...]


class Span(BaseModel):
    """Tokens in a row that were drawn from the same weights."""

    version: str


class Choice(BaseModel):
    """A continuation."""

    token_ids: tuple[int, ...]
    finish_reason: str
    weight_versions: tuple[Span, ...]
    logprobs: Logprobs | None = None

    def versions(self) -> set[str]:
        """Names of the weights that made it; none where the server does not say."""
        return {span.version for span in self.weight_versions}


class Answer(BaseModel):
    """To token ids."""

    choices: tuple[Choice]
    prompt_logprobs: tuple[dict[int, Told] | None, ...] | None = None


class ModelInfo(BaseModel):
    """Of the model that is served."""

    model: str
    """Its folder, on the server's machine."""
    max_model_len: int
    logprobs_mode: str


class TransferInfo(BaseModel):
    """Of the way weights come in."""

    backend: str


class ShardInfo(BaseModel):
    """Of the processes that a model is sharded among."""

    world_size: int = Field(gt=0)


class Settings(BaseModel):
    """Of a server."""

    # pydantic has another use for the name `model_config`.
    model: ModelInfo = Field(alias="model_config")
    transfer: TransferInfo | None = Field(alias="weight_transfer_config")
    shards: ShardInfo = Field(alias="parallel_config")


class ServerInfo(BaseModel):
    """What a server says of itself."""

    vllm_config: Settings


def parsed(answer: object, kind: type[Parsed], url: str, path: str) -> Parsed:
    """JSON that the server at `url` answered to `path`.

    Raises:
        EngineDiedError: it has another form.
    """
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise unreadable(url, path, f"{where}: {first['msg']}") from error


def response_of(choice: Choice, url: str) -> tuple[tuple[int, ...], tuple[float, ...], Finish]:
    """Tokens, their log-probs, and how the response ended.

    Raises:
        EngineDiedError: no token, though one is asked for at least and an answer without any would
            be trained on as one; a token without log-prob; or an end that is none.
    """
    finish = finish_of(url, choice.finish_reason)
    told = () if choice.logprobs is None else choice.logprobs.content
    if not choice.token_ids or len(told) != len(choice.token_ids):
        what = f"{len(choice.token_ids)} tokens with {len(told)} log-probs"
        raise unreadable(url, GENERATE, what)
    return choice.token_ids, tuple(token.logprob for token in told), finish


def scores_of(answer: Answer, ids: Sequence[int], url: str) -> list[float]:
    """Log-prob of each of the prompt's tokens but the first.

    Raises:
        EngineDiedError: not of each.
    """
    told = answer.prompt_logprobs or ()
    following = [
        at[token].logprob
        for at, token in zip(told[1:], ids[1:], strict=False)
        if at is not None and token in at
    ]
    if len(told) != len(ids) or len(following) != len(ids) - 1:
        what = f"log-probs of {len(following)} tokens, {len(ids) - 1} were asked"
        raise unreadable(url, GENERATE, what)
    return following


def finish_of(url: str, reason: str) -> Finish:
    """How a response ended, of the two ways in which one can be whole.

    Raises:
        EngineDiedError: the server gave it up ("abort", "error"): not an answer cut at its limit.
    """
    if reason not in ("stop", "length"):
        raise EngineDiedError(
            url, f"it ended an answer with {reason!r}.", "Its own log says why; ask again."
        )
    return Finish(reason)


def unreadable(url: str, path: str, what: str) -> EngineDiedError:
    """Of an answer that is none."""
    return EngineDiedError(
        url,
        f"its answer to '{path}' cannot be read ({what}).",
        "Look at the server's log, and at what stands between it and the trainer.",
    )
