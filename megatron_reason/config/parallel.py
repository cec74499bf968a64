"""The parallel layout of a training or scoring job, checked before any process starts."""

from typing import Literal

from pydantic import Field

from megatron_reason.config.base import Strict
from megatron_reason.errors import TopologyError


class ParallelConfig(Strict):
    """Section `parallel`; what is left of the processes is data parallel."""

    tensor_model_parallel_size: int = Field(default=1, ge=1)
    """Ranks that share each matrix and the vocabulary (TP)."""
    pipeline_model_parallel_size: int = Field(default=1, ge=1)
    """Ranks that share the layers (PP)."""
    expert_model_parallel_size: int = Field(default=1, ge=1)
    """Data-parallel ranks that share the experts of each layer (EP); 1 for a model without."""
    sequence_parallel: bool = False
    """Shard activations along the tokens between tensor-parallel regions."""
    recompute: Literal["none", "full"] = "none"
    """Keep activations, or recompute each layer in the backward pass."""

    @property
    def model_size(self) -> int:
        """Ranks that hold every weight: TP x PP x EP."""
        dense = self.tensor_model_parallel_size * self.pipeline_model_parallel_size
        return dense * self.expert_model_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Groups of TP x PP ranks in `world_size`, each with samples of its own.

        Raises:
            TopologyError: `world_size` is not a multiple of TP x PP x EP.
        """
        if world_size % self.model_size:
            raise TopologyError(
                "parallel",
                f"{world_size} processes cannot hold whole copies of a model split over "
                f"TP {self.tensor_model_parallel_size} x PP {self.pipeline_model_parallel_size}"
                f" x EP {self.expert_model_parallel_size}.",
                f"Use a multiple of {self.model_size} processes, or a smaller layout.",
            )
        return world_size // self.model_size * self.expert_model_parallel_size
