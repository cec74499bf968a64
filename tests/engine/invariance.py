"""One global batch, one tiny model, any layout: loss and gradients in Hugging Face's names.

Used by the invariance tests and by the tool that writes the published table.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig, OptimConfig
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, TrainState, create_method

VOCAB = 61
LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2)]
BATCHES = {
    "micro-batch 1 (unpacked)": BatchConfig(max_sequences_per_microbatch=1),
    "micro-batch 2": BatchConfig(max_sequences_per_microbatch=2),
    "micro-batch 4": BatchConfig(max_sequences_per_microbatch=4),
    "packed": BatchConfig(max_tokens_per_microbatch=64),
}


def make_model(folder: Path, *, tied: bool) -> Path:
    """Random Qwen2 of four layers, float32, with biases that are not zero."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
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


def samples() -> list[TokenizedSample]:
    """Twelve sequences of differing lengths, two roles."""
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    drawn: list[TokenizedSample] = []
    for index in range(12):
        length = draw(6, 22)
        ids = tuple(draw(0, VOCAB) for _ in range(length))
        role = Role.DEMO if index % 3 else Role.NEGATIVE
        drawn.append(TokenizedSample(f"s{index}", role, ids, draw(1, length - 2)))
    return drawn


def method() -> Method[Any]:
    """OXA with a weight that lets both terms matter."""
    return create_method("oxa", suppress_weight=0.5)


def reference(folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by Hugging Face's model in float64, one unpadded sequence at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    drawn = samples()
    numbers = {role: sum(s.role == role for s in drawn) for role in Role}
    total = torch.zeros((), dtype=torch.float64)
    for sample in drawn:
        ids = torch.tensor(sample.ids)
        logits = model(ids[None, :-1]).logits[0, sample.num_prompt_tokens - 1 :]
        logprob = torch.log_softmax(logits, dim=1).gather(1, ids[sample.num_prompt_tokens :, None])
        value = -logprob if sample.role == Role.DEMO else -0.5 * torch.log1p(-logprob.exp())
        total = total + value.mean() / numbers[sample.role]
    total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return total.item(), gradients


def measure(
    layout: tuple[int, int, int], batch: BatchConfig, folder: Path, scratch: Path, **options: Any
) -> tuple[float, dict[str, Tensor]] | None:
    """Loss and gradients on this layout; every rank calls it, rank 0 gets the result.

    `options` are further fields of the parallel configuration.
    """
    from megatron_reason.engine.aggregation import global_counts, means_of
    from megatron_reason.engine.forward import LossSpec
    from megatron_reason.engine.packing import microbatches_of_rank
    from megatron_reason.engine.startup import load_model, make_trainable
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.engine.update import _reduced, backpropagate
    from megatron_reason.models.exporter import export_hf
    from megatron_reason.schema.metrics import StepMetrics

    parallel = ParallelConfig(
        tensor_model_parallel_size=layout[0], pipeline_model_parallel_size=layout[1], **options
    )
    from megatron.core import parallel_state

    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    topology = init_topology(parallel)
    stage = load_model(ModelConfig(path=str(folder), dtype="float32"), folder, parallel, topology)
    trainable = make_trainable(stage, OptimConfig(lr=1e-3), topology)
    learner = method()
    terms = learner.terms(TrainState(0, 1))
    batches = microbatches_of_rank(
        samples(), batch, rank=topology.dp_rank, num_ranks=topology.dp_size,
        multiple_of=topology.tp_size,
    )  # fmt: skip
    cpu = torch.device("cpu")
    counts = global_counts(terms, batches, topology, cpu)
    local = backpropagate(trainable, batches, LossSpec(terms, learner.token_losses, counts))
    merged: StepMetrics = _reduced(local, topology, cpu)
    loss = [means_of(terms, merged)["train/loss"] if topology.is_last_stage else 0.0]
    dist.broadcast_object_list(loss, src=dist.get_world_size() - 1)
    _gather_gradients(trainable.model)
    for parameter in stage.parameters():
        parameter.data.copy_(parameter.main_grad)
    target = scratch / "gradients"
    export_hf(stage, folder, target, topology, {})
    return (loss[0], load_file(target / "model.safetensors")) if topology.rank == 0 else None


def _gather_gradients(model: Any) -> None:
    """Undo the distributed optimizer's reduce-scatter: every rank gets the whole gradient."""
    for buffer in [*model.buffers, *model.expert_parallel_buffers]:
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            shards = list(bucket.grad_data.chunk(group.size()))
            dist.all_gather(shards, shards[group.rank()].clone(), group=group)
