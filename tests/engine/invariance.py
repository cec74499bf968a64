"""One global batch, one tiny model, any layout: loss and gradients in Hugging Face's names.

Used by the invariance tests and by the tool that writes the published table.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig, OptimConfig
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role, TokenizedSample, TokenStats
from megatron_reason.schema.method import Frozen, Method, TrainState, create_method
from megatron_reason.schema.topology import Topology

VOCAB = 61


class Layout(NamedTuple):
    """Sizes of a layout; with TP and CP sequence parallelism, too."""

    tp: int
    pp: int
    dp: int
    cp: int = 1

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.tp * self.pp * self.dp * self.cp

    def __str__(self) -> str:
        context = f"-cp{self.cp}" if self.cp > 1 else ""
        return f"tp{self.tp}-pp{self.pp}{context}-dp{self.dp}"


LAYOUTS = [
    Layout(1, 1, 1), Layout(2, 1, 1), Layout(1, 2, 1), Layout(1, 1, 2), Layout(1, 1, 1, cp=2),
    Layout(2, 2, 1), Layout(2, 1, 2), Layout(1, 2, 2), Layout(2, 1, 1, cp=2),
]  # fmt: skip
BATCHES = {
    "micro-batch 1 (unpacked)": BatchConfig(max_sequences_per_microbatch=1),
    "micro-batch 2": BatchConfig(max_sequences_per_microbatch=2),
    "micro-batch 4": BatchConfig(max_sequences_per_microbatch=4),
    "packed": BatchConfig(max_tokens_per_microbatch=64),
}


def make_model(folder: Path, *, tied: bool, seed: int = 3) -> Path:
    """Random Qwen2 of four layers, float32, with biases that are not zero."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=tied, dtype="float32",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("sft", {}),
    "SFT, token mean": ("sft", {"mean": "token_mean"}),
    "SFT_KL": ("sft_kl", {}),
    "SFT_KL, k3": ("sft_kl", {"kl_kind": "k3"}),
    "DFT": ("dft", {}),
    "OXA_Full": ("oxa", {"suppress_weight": 0.5}),
    "GRPO": ("grpo", {"kl_weight": 0.1, "entropy_bonus": 0.1, "temperature": 0.85}),
    "GRPO, chunks": ("grpo", {"mean": "chunk_mean_token_mean", "chunk": 3}),
    "DAPO": ("grpo", {"clip_high": 0.28, "dual_clip": None, "tis": "token"}),
    "Dr.GRPO": ("grpo", {"mean": "seq_mean_token_sum_norm", "max_response_length": 16}),
    "GSPO": ("grpo", {"ratio": "sequence", "mean": "seq_mean_token_mean"}),
    "SRFT": ("srft", {}),
    "SRFT, batch entropy": ("srft", {"entropy_scope": "batch", "demo_shape": "luffy"}),
    "SRFT, subset entropy": ("srft", {"entropy_scope": "subset"}),
    "SRFT without w_SFT": ("srft", {"weigh_sft": False}),
    "SRFT without w_RL": ("srft", {"weigh_rl": False}),
    "LESE": ("lese", {"kl_weight": 0.1, "entropy_bonus": 0.1}),
    "LUFFY": ("luffy", {"max_response_length": 16, "kl_weight": 0.1}),
    "RL with SFT loss": (
        "luffy",
        {"group": "rollouts", "demo_loss": "likelihood", "max_response_length": 16},
    ),
    "ReLIFT": ("relift", {"max_response_length": 16}),
    "CHORD-mu": ("chord", {}),
    "CHORD-phi": ("chord", {"peak": 0.1, "valley": 0.1, "token_weight": "probability_complement"}),
    "HPT": ("hpt", {"max_response_length": 16}),
    "Clip-Cov": ("cov", {"cov_low": 0.01, "clip_fraction": 0.1}),
    "KL-Cov": ("cov", {"mode": "kl", "kl_fraction": 0.1, "kl_weight": 0.1}),
}
"""Every method, in settings under which each of its terms matters."""
STATE = TrainState(3, 10, seed=7)


def method(name: str) -> Method[Any]:
    """The method called `name` in the table."""
    kind, settings = METHODS[name]
    return create_method(kind, **settings)


def samples() -> list[TokenizedSample]:
    """Three prompts with three rollouts and a demonstration each, and three errors: 15 sequences.

    Recorded log-probs are drawn about those of a random model, so that some ratios are clipped.
    """
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def logprobs(count: int) -> tuple[float, ...]:
        return tuple((-4.1 + 0.5 * torch.randn(count, generator=generator)).tolist())

    drawn: list[TokenizedSample] = []
    for index in range(15):
        length = draw(6, 22)
        ids = tuple(draw(0, VOCAB) for _ in range(length))
        prompt = draw(1, length - 2)
        group, member = divmod(index, 5)
        role = (Role.ROLLOUT, Role.DEMO, Role.ROLLOUT, Role.NEGATIVE, Role.ROLLOUT)[member]
        drawn.append(
            TokenizedSample(
                f"s{index}", role, ids, prompt, group=f"prompt {group}",
                advantage=(1.2, 0.9, -0.7, 0.0, -0.5)[member] + 0.1 * group,
                is_correct=member < 2, coef=0.3 + 0.2 * group,
                old_logprobs=logprobs(length - prompt), rollout_logprobs=logprobs(length - prompt),
            )
        )  # fmt: skip
    return drawn


def reordered(drawn: list[TokenizedSample], mode: str) -> list[TokenizedSample]:
    """The samples backwards, in all ways to cut micro-batches but the first."""
    return drawn if mode == next(iter(BATCHES)) else drawn[::-1]


@dataclass(frozen=True)
class Reference:
    """Hugging Face's model in float64, and the frozen one beside it."""

    model: Any
    frozen: Any

    @classmethod
    def open(cls, folder: Path, base: Path) -> "Reference":
        """Models of the two folders."""
        from transformers import AutoModelForCausalLM

        # Its faster way with experts knows no float64.
        exact: dict[str, Any] = {"dtype": torch.float64, "experts_implementation": "eager"}
        load = AutoModelForCausalLM.from_pretrained
        return cls(load(folder, **exact), load(base, **exact))

    def measure(
        self, learner: Method[Any], drawn: list[TokenizedSample], state: TrainState = STATE
    ) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients, one unpadded sequence at a time."""
        from megatron_reason.engine.aggregation import global_counts, weighted_loss
        from megatron_reason.engine.frozen import whole_batch
        from megatron_reason.engine.packing import pack

        batch = pack(drawn)

        def logits(of: Any) -> Tensor:
            ids = [torch.tensor(sample.ids[:-1]) for sample in drawn]
            return torch.cat([of(row[None]).logits[0] for row in ids])

        self.model.zero_grad()
        with torch.no_grad():
            ref_logits = logits(self.frozen)
            ref = token_stats_from_logits(
                ref_logits, batch.target_T, temperature=learner.temperature
            )
        stats = token_stats_from_logits(
            logits(self.model), batch.target_T, temperature=learner.temperature,
            backend="reference", reference_logits=ref_logits,
        )  # fmt: skip
        batch = replace(batch, ref_logprob_T=ref.logprob_T)
        if Frozen.COEFFICIENTS in learner.required().frozen:
            detached = TokenStats(stats.logprob_T.detach(), stats.entropy_T.detach())
            whole = whole_batch([batch], [detached], drawn, Topology())
            coef_T = torch.zeros_like(stats.logprob_T)
            coef_T[batch.supervised_N] = learner.coefficients(whole, state)
            batch = replace(batch, coef_T=coef_T)
        terms = learner.terms(state)
        counts = global_counts(terms, [batch], Topology(), torch.device("cpu"))
        total, _ = weighted_loss(terms, learner.token_losses(stats, batch), batch, counts)
        total.backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return total.item(), {name: gradient.clone() for name, gradient in found.items()}


def reference(
    learner: Method[Any], folder: Path, base: Path, drawn: list[TokenizedSample],
    state: TrainState = STATE,
) -> tuple[float, dict[str, Tensor]]:  # fmt: skip
    """`Reference.measure` of one method."""
    return Reference.open(folder, base).measure(learner, drawn, state)


@dataclass(frozen=True)
class World:
    """A model on one layout, ready to be measured."""

    trainable: Any
    folder: Path

    @classmethod
    def open(cls, layout: Layout, folder: Path, base: Path, **options: Any) -> "World":
        """On this layout; `options` are further fields of the parallel configuration."""
        from megatron.core import parallel_state

        from megatron_reason.engine.startup import load_model, make_trainable
        from megatron_reason.engine.topology import init_topology

        parallel = ParallelConfig(
            tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp,
            context_parallel_size=layout.cp,
            **{"sequence_parallel": layout.tp > 1 and layout.cp > 1} | options,
        )  # fmt: skip
        if parallel_state.is_initialized():
            parallel_state.destroy_model_parallel()
        topology = init_topology(parallel)
        config = ModelConfig(path=str(folder), dtype="float32")
        stage = load_model(config, folder, parallel, topology)
        frozen = load_model(config, base, parallel, topology).requires_grad_(False)
        return cls(make_trainable(stage, OptimConfig(lr=1e-3), topology, frozen), folder)

    def measure(
        self, learner: Method[Any], batch: BatchConfig, drawn: list[TokenizedSample], scratch: Path
    ) -> tuple[float, dict[str, Tensor]] | None:
        """Loss and gradients; every rank calls it, rank 0 gets the result."""
        from megatron_reason.engine.aggregation import means_of
        from megatron_reason.engine.update import accumulate
        from megatron_reason.models.exporter import export_hf

        topology = self.trainable.topology
        terms, merged = accumulate(self.trainable, learner, drawn, STATE, batch)
        loss = [means_of(terms, merged)["train/loss"] if topology.is_last_stage else 0.0]
        dist.broadcast_object_list(loss, src=dist.get_world_size() - 1)
        _gather_gradients(self.trainable.model)
        stage = self.trainable.model.module
        weights = [parameter.data.clone() for parameter in stage.parameters()]
        for parameter in stage.parameters():
            parameter.data.copy_(parameter.main_grad)
        export_hf(stage, self.folder, scratch, topology)
        for parameter, weight in zip(stage.parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        if topology.rank != 0:
            return None
        return loss[0], load_file(scratch / "model.safetensors")


def _gather_gradients(model: Any) -> None:
    """Undo the distributed optimizer's reduce-scatter: every rank gets the whole gradient."""
    for buffer in [*model.buffers, *model.expert_parallel_buffers]:
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            shards = list(bucket.grad_data.chunk(group.size()))
            dist.all_gather(shards, shards[group.rank()].clone(), group=group)
