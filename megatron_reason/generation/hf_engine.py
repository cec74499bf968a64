"""A transformers model as an `Engine`, for machines without vLLM.

Sequences are batched continuously: one that ends leaves its place to one that waits. Each draws
with a generator of its own (Gumbel noise added to the logits), so what is drawn depends on the
request's seed and not on its neighbours. Log-probs are the model's own at temperature 1 and before
top-p, or those of the distribution that was sampled from, as `EngineConfig.logprobs` says. Not
here: the batch and its cache (`hf_batch.py`).

B sequences of a batch, V vocabulary.
"""

import re
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.base import Completion
from megatron_reason.generation.buckets import ArrivingBucket
from megatron_reason.generation.hf_batch import Row, RunningBatch
from megatron_reason.generation.owned import OwnedEngine, Request
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.records import Finish

_EXPERT = re.compile(
    r"(?P<experts>.+\.experts\.)(?P<number>\d+)\.(?P<part>gate|up|down)_proj\.weight"
)
_STACKED = {"gate": "gate_up_proj", "up": "gate_up_proj", "down": "down_proj"}
_SHARE_JOINING = 8
"""Sequences join once this part of the places is free: each time the whole cache is copied."""


class HFEngine(OwnedEngine):
    """transformers in this process; deadlines and memory limits do not apply here.

    Args:
        hf_folder: Hugging Face folder of the model.
        config: lengths and batch size.
        dtype: data type of the weights.
    """

    kind = "transformers"

    def __init__(self, hf_folder: Path, config: EngineConfig, *, dtype: Precision) -> None:
        super().__init__(hf_folder, config, dtype)
        self._model: Any = None
        self._start()

    @property
    def is_open(self) -> bool:
        """Whether it holds a model."""
        return self._model is not None

    @property
    def takes_from_device(self) -> bool:
        """Its model lies there."""
        return True

    def is_healthy(self) -> bool:
        """Whether it holds a model: it is this process."""
        return self.is_open

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _start(self) -> None:
        self._model = _load(self._folder, self._dtype)

    def _draw(
        self, requests: Sequence[Request], sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
    ) -> Generator[tuple[int, list[Completion]], None, None]:
        self._check_open()
        found: list[dict[int, Completion]] = [{} for _ in requests]
        waiting = self._rows(requests, sampling)
        draw = _Draw(sampling, of_sampler=self._config.logprobs == "sampler")
        batch = RunningBatch(self._model, draw, stop_token_ids)
        places = self._config.max_num_seqs
        while waiting or len(batch):
            free = places - len(batch)
            if waiting and free >= max(1, places // _SHARE_JOINING):
                batch.join([waiting.popleft() for _ in range(min(free, len(waiting)))])
            for row in batch.step():
                prompt, sample = row.place
                found[prompt][sample] = self._completion(row, stop_token_ids)
                if len(found[prompt]) == len(requests[prompt].seeds):
                    yield prompt, [one for _, one in sorted(found[prompt].items())]
                    found[prompt].clear()

    @torch.inference_mode()
    def _score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        self._check_open()
        rows: list[list[float]] = []
        for sequence in sequences:
            ids_T = torch.tensor(sequence, device=self._model.device)
            logits_TV = self._model(ids_T[None]).logits[0, :-1].float()
            rows.append(token_stats_from_logits(logits_TV, ids_T[1:]).logprob_T.tolist())
        return rows

    def _exchange(self) -> None:
        self._start()

    def _receive(self, buckets: Iterable[ArrivingBucket], version: int) -> None:  # noqa: ARG002
        self._check_open()
        state: dict[str, Tensor] = self._model.state_dict()
        with torch.no_grad():
            for bucket in buckets:
                for entry, tensor in bucket:
                    _place(state, entry.name).copy_(tensor)

    def _sleep(self) -> None:
        self._check_open()
        self._model.to("cpu")

    def _wake(self) -> None:
        self._check_open()
        self._model.to(_device())

    def _check_open(self) -> None:
        if self._model is None:
            raise GenerationError(str(self._folder), "this engine was closed.", "Open a new one.")

    def _rows(self, requests: Sequence[Request], sampling: SamplingConfig) -> deque[Row]:
        """Sequences in order of their prompts' length, so that little is padded."""
        rows = [
            Row(
                ids=request.ids,
                limit=min(sampling.max_tokens, self._config.max_model_len - len(request.ids)),
                generator=torch.Generator(self._model.device).manual_seed(seed),
                place=(index, number),
            )
            for index, request in enumerate(requests)
            for number, seed in enumerate(request.seeds)
        ]
        return deque(sorted(rows, key=lambda row: len(row.ids)))

    def _completion(self, row: Row, stop_token_ids: tuple[int, ...]) -> Completion:
        is_stopped = row.token_ids[-1] in stop_token_ids
        finish = Finish.STOP if is_stopped else Finish.LENGTH
        return Completion(
            tuple(row.token_ids), tuple(row.logprobs), finish, self._policy_version
        )  # fmt: skip


class _Draw:
    """Chooses each sequence's next token."""

    def __init__(self, sampling: SamplingConfig, *, of_sampler: bool) -> None:
        self._sampling = sampling
        self._of_sampler = of_sampler

    def __call__(
        self, logits_BV: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        model_BV = logits_BV.log_softmax(dim=-1)
        sampler_BV = self._sampled_from(model_BV)
        token_B = self._chosen(sampler_BV, generators)
        told_BV = sampler_BV.log_softmax(dim=-1) if self._of_sampler else model_BV
        return token_B, told_BV.gather(1, token_B[:, None])[:, 0]

    def _sampled_from(self, logprob_BV: Tensor) -> Tensor:
        """Logits of the distribution that is drawn from; of the model's own when greedy."""
        if not self._sampling.temperature:
            return logprob_BV
        logits_BV = logprob_BV / self._sampling.temperature
        if self._sampling.top_p < 1:
            logits_BV = _within_top_p(logits_BV, self._sampling.top_p)
        return logits_BV

    def _chosen(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if not self._sampling.temperature:
            return logits_BV.argmax(dim=-1)
        noise_BV = torch.empty_like(logits_BV)
        for row_V, generator in zip(noise_BV, generators, strict=True):
            row_V.exponential_(generator=generator)
        # argmax of logits + Gumbel noise is a draw from their softmax; -log(exponential) is Gumbel.
        return (logits_BV - noise_BV.log()).argmax(dim=-1)


def _within_top_p(logits_BV: Tensor, top_p: float) -> Tensor:
    """Logits with all but the smallest set of tokens of mass `top_p` at -inf."""
    ordered_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
    prob_BV = ordered_BV.softmax(dim=-1)
    before_BV = prob_BV.cumsum(dim=-1) - prob_BV
    kept_BV = ordered_BV.masked_fill(before_BV >= top_p, float("-inf"))
    return torch.empty_like(logits_BV).scatter(1, order_BV, kept_BV)


def _place(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Where a tensor of a checkpoint lies in the running model, which keeps experts together."""
    if name in state:
        return state[name]
    expert = _EXPERT.fullmatch(name)
    together = expert and state.get(expert["experts"] + _STACKED[expert["part"]])
    if not expert or together is None:
        raise GenerationError(
            name,
            "transformers keeps this tensor under another name, which this engine does not know.",
            "Set engine.name: vllm.",
        )
    matrix = together[int(expert["number"])]
    gate, up = matrix.chunk(2) if expert["part"] != "down" else (matrix, matrix)
    return up if expert["part"] == "up" else gate


def _load(folder: Path, dtype: Precision) -> Any:  # noqa: ANN401 - transformers has no common type
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    # Its defaults (temperature, end tokens) would creep into every request.
    model.generation_config = GenerationConfig()
    return model.to(_device()).eval()


def _device() -> torch.device:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")
