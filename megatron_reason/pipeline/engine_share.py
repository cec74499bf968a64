"""What an engine takes of the GPUs that it has alone, or shares with a trainer.

Not here: the trainer's memory (`estimate.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_reason.config.gpus import GIB, Gpu
from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import ConfigError
from megatron_reason.pipeline._sizes import Sizes

_BESIDE_WEIGHTS = 4 * GIB
"""Keys, values and activations with which an engine can just work; an assumption."""
_ASLEEP = 2 * GIB
"""What a sleeping vLLM keeps: its process' context and graphs; an assumption."""
_STEP = 0.05
_NODE = (1, 2, 4, 8)


@dataclass(frozen=True)
class EngineShare:
    """What an engine takes of each GPU it is on."""

    weights: float
    """Bytes of the model's weights on each."""
    memory: float
    """Bytes of a GPU."""
    fraction: float
    """Share of it that the engine may take."""
    sleeps: bool = False
    """Whether it gives that back while the trainer updates."""

    @classmethod
    def of(
        cls, config: EngineConfig, sizes: Sizes, gpu: Gpu, dtype: Precision
    ) -> "EngineShare | None":
        """Of the engine that `config` asks for; None where it has no GPU of the trainer's.

        That of `transformers` takes what its weights need, and lives on the trainer's.
        """
        weights = _weights(sizes, dtype) / config.tensor_parallel_size
        if config.name == "vllm-server":
            return None
        if config.name == "transformers":
            taken = (weights + _BESIDE_WEIGHTS) / gpu.memory
            return cls(weights, gpu.memory, taken, config.sleep_mode)
        return cls(weights, gpu.memory, config.memory_fraction, config.sleep_mode)

    @property
    def taken(self) -> float:
        """Bytes."""
        return self.memory * self.fraction

    @property
    def is_enough(self) -> bool:
        """Whether the weights fit, and something to work with."""
        return self.weights + _BESIDE_WEIGHTS <= self.taken

    def beside(self, freed: float) -> float:
        """Bytes that it adds to the most a trainer holds, `freed` of which only in an update."""
        return max(_ASLEEP, self.taken - freed) if self.sleeps else self.taken

    def smaller(self) -> Iterator["EngineShare"]:
        """The same with less of the GPU, as long as that is enough."""
        steps = int(round(self.fraction / _STEP, 6))
        for step in range(steps, 0, -1):
            found = replace(self, fraction=round(step * _STEP, 2))
            if found.fraction < self.fraction and found.is_enough:
                yield found


def objection(config: EngineConfig, sizes: Sizes, gpu: Gpu, dtype: Precision) -> str | None:
    """Why vLLM cannot hold the model as it is configured, and what would; None if it can."""
    if config.name == "transformers":
        return None
    shards = config.tensor_parallel_size
    if not sizes.splits(shards):
        return (
            f"engine: tensor_parallel_size: {shards} does not divide {sizes.heads} heads, "
            f"{sizes.kv_heads} key heads (nor they it) and {sizes.ffn} columns of the MLP"
        )
    asked = EngineShare.of(config.model_copy(update={"name": "vllm"}), sizes, gpu, dtype)
    assert asked is not None, "vLLM has a share"
    if asked.is_enough:
        return None
    for size in _NODE:
        shard = replace(asked, weights=_weights(sizes, dtype) / size)
        if shard.is_enough and sizes.splits(size):
            way_out = f"set engine.tensor_parallel_size: {size}"
            break
    else:
        way_out = "no eight of them can"
    return (
        f"engine: {asked.weights / GIB:.0f} GiB of weights on each GPU do not fit into the "
        f"{asked.taken / GIB:.0f} GiB that vLLM takes of it; {way_out}"
    )


def on_gpus(config: EngineConfig, sizes: Sizes, gpus: int) -> EngineConfig:
    """A server's engine on so many GPUs: among all that its heads allow, unless it says.

    Raises:
        ConfigError: it asks for more than there are.
    """
    if "tensor_parallel_size" not in config.model_fields_set:
        most = max(size for size in range(1, gpus + 1) if sizes.splits(size))
        return config.model_copy(update={"tensor_parallel_size": most})
    if config.tensor_parallel_size > gpus:
        raise ConfigError(
            "engine.tensor_parallel_size",
            f"{config.tensor_parallel_size} is more than the {gpus} GPUs that the server has.",
            "Give it more GPUs, or make it smaller; without it the server takes what it can.",
        )
    return config


def _weights(sizes: Sizes, dtype: Precision) -> float:
    return sizes.parameters * (4.0 if dtype == "float32" else 2.0)
