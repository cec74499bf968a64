"""Messages to token ids and back: prompt and response tokenised apart, masked by construction.

What is supervised is exactly `response_ids`: the response's own tokens, then all that the chat
template writes after an assistant's message (for ChatML `<|im_end|>` and a newline). The first
special token of that ending is what the model learns to stop with, so it is always among
`stop_token_ids`. Not here: packing and loss masks (`engine/packing.py`), which follow from the
number of prompt tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import DataError
from megatron_reason.files import hash_file, hash_text, read_json
from megatron_reason.registry import Registry
from megatron_reason.schema.records import Message

OF_THE_MODEL = "model"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_PLACEHOLDER = "PLACEHOLDER"
_THINK = "<think>"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template as a file of `chat_templates/` declares it."""

    jinja: str
    """Template text in the dialect of Hugging Face's `apply_chat_template`."""
    suffix: str = ""
    """Text appended to the last user message unless the configuration gives another."""


TEMPLATES: Registry[ChatTemplate] = Registry(
    "template", "megatron_reason.generation.chat_templates"
)


@dataclass(frozen=True)
class Template:
    """How one tokenizer writes conversations; made by `load_template`."""

    tokenizer: PreTrainedTokenizerBase
    """The model's tokenizer."""
    chat: ChatTemplate
    """Text around and after the messages, with the configured suffix."""
    system: str | None
    """System prompt of conversations that have none; None leaves it to the template."""
    opening: str
    """Beginning of every answer that stands in the prompt already: `<think>`, or nothing."""
    turn_end_ids: tuple[int, ...]
    """What the template writes after an assistant's message: a stop token, perhaps a newline."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a response: the model's own and the turn end's, sorted."""
    hash: str
    """Changes whenever the same messages could become other ids."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins.

        Raises:
            DataError: no message, or no user message to append the suffix to.
        """
        rendered = _render(self.tokenizer, self.chat, self._prepared(messages), open_turn=True)
        return self.tokenizer.encode(rendered, add_special_tokens=False)

    def response_ids(self, text: str, *, finished: bool = True) -> list[int]:
        """Ids to be supervised for the answer `text`; nothing is put before them.

        Args:
            text: the answer; the part of it that stands in the prompt is left out.
            finished: False for an answer that a token limit cut: it gets no turn end, so that the
                model does not learn to stop there.
        """
        if self.opening:
            text = text.removeprefix(self.opening).lstrip("\n")
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, *self.turn_end_ids] if finished else ids

    def generated_ids(self, text: str, *, finished: bool = True) -> list[int]:
        """Ids of the answer `text` as a model generates it.

        Those of `response_ids` up to the stop token: what a template writes behind that was never
        drawn.
        """
        ids = self.response_ids(text, finished=finished)
        if not finished:
            return ids
        stop = next(i for i, one in enumerate(self.turn_end_ids) if one in self.stop_token_ids)
        return ids[: len(ids) - len(self.turn_end_ids) + stop + 1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cast("str", text)

    def answer(self, ids: Sequence[int]) -> str:
        """Text of a generated answer, from the thought that the prompt opened; empty stays empty.

        Graders tell by the opening tag that a thought was cut before it concluded anything.
        """
        text = self.decode(ids)
        return f"{self.opening}\n{text}" if self.opening and text.strip() else text

    def _prepared(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        if not messages:
            raise DataError("template", "a conversation without messages.", "Drop the row.")
        turns = [asdict(message) for message in messages]
        if self.chat.suffix:
            last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
            if last is None:
                roles = ", ".join(turn["role"] for turn in turns)
                raise DataError(
                    "template.suffix",
                    f"a conversation of roles {roles} has no user message to append to.",
                    "Drop the row, or set template.suffix: ''.",
                )
            turns[last]["content"] += self.chat.suffix
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return turns


def load_template(config: TemplateConfig, hf_folder: Path) -> Template:
    """Template for the tokenizer in `hf_folder`.

    Args:
        config: which template, system prompt and suffix.
        hf_folder: Hugging Face folder with tokenizer files and `config.json`.

    Raises:
        ConfigError: no template of that name.
        DataError: no tokenizer, no chat template, one whose turns end without a special token, or
            a tokenizer with ids that the model's vocabulary does not have.
    """
    tokenizer = _load_tokenizer(hf_folder)
    _check_vocabulary(tokenizer, hf_folder)
    chat = _chosen(config, tokenizer, hf_folder)
    turn_end_ids = _turn_end(tokenizer, chat, where=f"template '{config.name}' on {hf_folder}")
    first_special = next(id for id in turn_end_ids if id in tokenizer.all_special_ids)
    stop_token_ids = tuple(sorted({first_special, *_model_stops(tokenizer, hf_folder)}))
    return Template(
        tokenizer=tokenizer,
        chat=chat,
        system=config.system,
        opening=_opening(tokenizer, chat),
        turn_end_ids=turn_end_ids,
        stop_token_ids=stop_token_ids,
        hash=_hash(config, chat, stop_token_ids, hf_folder),
    )


def exported_jinja(config: TemplateConfig) -> str | None:
    """Chat template that a model trained with `config` should carry; None keeps its own.

    A suffix is no part of it: it belongs to the problems, not to the conversation.
    """
    if config.name == OF_THE_MODEL:
        return None
    return TEMPLATES.get(config.name, "template.name").jinja


def _load_tokenizer(hf_folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(hf_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(
            str(hf_folder),
            f"no tokenizer could be loaded: {error}",
            "Put the tokenizer files of the model (tokenizer.json, ...) into this folder.",
        ) from error


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, hf_folder: Path) -> None:
    path = hf_folder / "config.json"
    if not path.is_file():
        raise DataError(
            str(hf_folder), "there is no config.json.", "Point model.path to a Hugging Face folder."
        )
    vocabulary_size = int(read_json(path)["vocab_size"])
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if largest >= vocabulary_size:
        raise DataError(
            str(hf_folder),
            f"the tokenizer does not match the model: token {token!r} has id {largest}, but "
            f"config.json has vocab_size {vocabulary_size}.",
            "Use the tokenizer that the model was trained with.",
        )


def _chosen(
    config: TemplateConfig, tokenizer: PreTrainedTokenizerBase, hf_folder: Path
) -> ChatTemplate:
    if config.name != OF_THE_MODEL:
        chat = TEMPLATES.get(config.name, "template.name")
        return ChatTemplate(chat.jinja, config.suffix or chat.suffix)
    own: object = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = cast("Mapping[str, object]", own).get("default")
    if not isinstance(own, str):
        raise DataError(
            str(hf_folder),
            "the tokenizer has no chat template (base models often have none).",
            f"Set template.name to one of: {', '.join(TEMPLATES.names())}.",
        )
    return ChatTemplate(own, config.suffix)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatTemplate,
    turns: list[dict[str, str]],
    *,
    open_turn: bool,
) -> str:
    rendered = tokenizer.apply_chat_template(
        turns, chat_template=chat.jinja, tokenize=False, add_generation_prompt=open_turn
    )
    return cast("str", rendered)


def _opening(tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate) -> str:
    asked = _render(tokenizer, chat, [{"role": "user", "content": "question"}], open_turn=True)
    return _THINK if asked.rstrip().endswith(_THINK) else ""


def _turn_end(
    tokenizer: PreTrainedTokenizerBase, chat: ChatTemplate, *, where: str
) -> tuple[int, ...]:
    turns = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": _PLACEHOLDER},
    ]
    ending = _render(tokenizer, chat, turns, open_turn=False).rpartition(_PLACEHOLDER)[2]
    ids = tokenizer.encode(ending, add_special_tokens=False)
    if not set(ids) & set(tokenizer.all_special_ids):
        raise DataError(
            where,
            f"an assistant's turn ends with {ending!r}, which holds no special token of this "
            "tokenizer, so a model could not learn to stop.",
            f"Choose a template made for the model: 'model', {', '.join(TEMPLATES.names())}.",
        )
    return tuple(ids)


def _model_stops(tokenizer: PreTrainedTokenizerBase, hf_folder: Path) -> set[int]:
    stops: set[int] = set()
    if isinstance(tokenizer.eos_token_id, int):
        stops.add(tokenizer.eos_token_id)
    path = hf_folder / "generation_config.json"
    if path.is_file():
        declared: object = read_json(path).get("eos_token_id")
        if isinstance(declared, int):
            stops.add(declared)
        elif isinstance(declared, list):
            stops.update(cast("list[int]", declared))
    return stops


def _hash(
    config: TemplateConfig, chat: ChatTemplate, stop_token_ids: tuple[int, ...], hf_folder: Path
) -> str:
    files = {
        name: hash_file(hf_folder / name)
        for name in _VOCABULARY_FILES
        if (hf_folder / name).is_file()
    }
    parts = [config.model_dump(), asdict(chat), stop_token_ids, files]
    return hash_text(json.dumps(parts, sort_keys=True))
