"""transformers' batched `generate` as an `Engine`, for machines without vLLM.

Each sequence draws with a generator of its own (Gumbel noise added to the logits), so what is drawn
depends on the request's seed and not on its neighbours. Log-probs are the model's own at
temperature 1 and before top-p. Not here: speed; vLLM's continuous batching is several times faster.

B sequences of a batch, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.base import Completion, OwnedEngine, check_prompts
from megatron_reason.generation.seeds import request_seeds
from megatron_reason.schema.records import Finish

_PAD = 0


@dataclass(frozen=True)
class _Request:
    prompt: int
    sample: int
    ids: tuple[int, ...]
    seed: int


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
        self._model: Any = _load(hf_folder, dtype)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw continuations; see `Engine.generate`. Only `stop_token_ids` end one."""
        if self._model is None:
            raise GenerationError(str(self._folder), "this engine was closed.", "Open a new one.")
        check_prompts(prompts, self._config.max_model_len)
        found: list[dict[int, Completion]] = [{} for _ in prompts]
        for batch in self._batches(prompts, sampling):
            for request, completion in self._run(batch, sampling, tuple(stop_token_ids)):
                done = found[request.prompt]
                done[request.sample] = completion
                if on_done is not None and len(done) == sampling.samples_per_prompt:
                    on_done(1)
        return [[completion for _, completion in sorted(of.items())] for of in found]

    def _exchange(self, folder: Path) -> None:
        self._model = _load(folder, self._dtype)

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _batches(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig
    ) -> Iterator[list[_Request]]:
        """Requests in order of length, so that little is padded."""
        requests = [
            _Request(index, sample, tuple(prompts[index]), seed)
            for index, seeds in enumerate(request_seeds(prompts, sampling))
            for sample, seed in enumerate(seeds)
        ]
        requests.sort(key=lambda request: len(request.ids))
        for start in range(0, len(requests), self._config.max_num_seqs):
            yield requests[start : start + self._config.max_num_seqs]

    @torch.inference_mode()
    def _run(
        self, batch: list[_Request], sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
    ) -> Iterator[tuple[_Request, Completion]]:
        longest = max(len(request.ids) for request in batch)
        shortest = min(len(request.ids) for request in batch)
        device = self._model.device
        ids = torch.tensor(
            [[_PAD] * (longest - len(request.ids)) + list(request.ids) for request in batch]
        )
        mask = torch.tensor(
            [[0] * (longest - len(request.ids)) + [1] * len(request.ids) for request in batch]
        )
        draw = _Draw(sampling, [request.seed for request in batch], device)
        output = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_processor=LogitsProcessorList([draw]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=min(sampling.max_tokens, self._config.max_model_len - shortest),
                eos_token_id=list(stop_token_ids) or None,
                pad_token_id=_PAD,
            ),
        )
        drawn = output[:, longest:].tolist()
        logprobs = torch.stack(draw.logprobs, dim=1).tolist()
        for row, request in enumerate(batch):
            limit = min(sampling.max_tokens, self._config.max_model_len - len(request.ids))
            yield request, self._cut(drawn[row][:limit], logprobs[row][:limit], stop_token_ids)

    def _cut(
        self, ids: list[int], logprobs: list[float], stop_token_ids: tuple[int, ...]
    ) -> Completion:
        """Completion up to and with the first stop token."""
        stop = next((i for i, token in enumerate(ids) if token in stop_token_ids), None)
        end = len(ids) if stop is None else stop + 1
        finish = Finish.LENGTH if stop is None else Finish.STOP
        return Completion(tuple(ids[:end]), tuple(logprobs[:end]), finish, self._policy_version)


class _Draw(LogitsProcessor):
    """Chooses each row's next token and leaves `generate` no other choice."""

    def __init__(self, sampling: SamplingConfig, seeds: list[int], device: torch.device) -> None:
        self._sampling = sampling
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.logprobs: list[Tensor] = []

    def __call__(
        self,
        input_ids: torch.LongTensor,  # noqa: ARG002 - part of the interface
        scores: torch.FloatTensor,
    ) -> torch.FloatTensor:
        logprob_BV = scores.float().log_softmax(dim=-1)
        token_B = self._chosen(logprob_BV)
        self.logprobs.append(logprob_BV.gather(1, token_B[:, None])[:, 0].cpu())
        only_choice_BV = torch.full_like(scores, float("-inf")).scatter(1, token_B[:, None], 0.0)
        return cast("torch.FloatTensor", only_choice_BV)

    def _chosen(self, logprob_BV: Tensor) -> Tensor:
        if not self._sampling.temperature:
            return logprob_BV.argmax(dim=-1)
        logits_BV = logprob_BV / self._sampling.temperature
        if self._sampling.top_p < 1:
            logits_BV = _within_top_p(logits_BV, self._sampling.top_p)
        noise_BV = torch.empty_like(logits_BV)
        for row_V, generator in zip(noise_BV, self._generators, strict=True):
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


def _load(folder: Path, dtype: Precision) -> Any:  # noqa: ANN401 - transformers has no common type
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    # Its defaults (temperature, end tokens) would creep into every request.
    model.generation_config = GenerationConfig()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(device or torch.device("cpu")).eval()
