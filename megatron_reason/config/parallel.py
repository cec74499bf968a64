"""The parallel layout of a training or scoring job, checked before any process starts."""

from math import lcm
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
    context_parallel_size: int = Field(default=1, ge=1)
    """Ranks that share the tokens of each sequence, for sequences too long for one (CP)."""
    expert_model_parallel_size: int = Field(default=1, ge=1)
    """Ranks that share the experts of each layer among them (EP); 1 for a model without."""
    expert_tensor_parallel_size: int | None = Field(default=None, ge=1)
    """Ranks that share each matrix of an expert; None for as many as share the others (TP)."""
    sequence_parallel: bool = False
    """Shard activations along the tokens between tensor-parallel regions."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Keep activations, or recompute in the backward pass: `selective` the feed-forward part, which
    keeps most; `full` each layer. Attention never keeps its scores."""

    @property
    def model_size(self) -> int:
        """Ranks of a unit: PP times the least that TP x CP and all experts' ranks fit."""
        tensor = self.tensor_model_parallel_size
        experts = self.expert_model_parallel_size * (self.expert_tensor_parallel_size or tensor)
        return lcm(tensor * self.context_parallel_size, experts) * self.pipeline_model_parallel_size

    @property
    def sample_size(self) -> int:
        """Ranks that work on the same samples: TP x PP x CP."""
        layers = self.tensor_model_parallel_size * self.pipeline_model_parallel_size
        return layers * self.context_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Groups of TP x PP x CP ranks in `world_size`, each with samples of its own.

        Raises:
            TopologyError: `world_size` is not a multiple of `model_size`.
        """
        if world_size % self.model_size:
            raise TopologyError(
                "parallel",
                f"{world_size} processes cannot hold whole copies of a model split over "
                f"TP {self.tensor_model_parallel_size} x PP {self.pipeline_model_parallel_size}"
                f"{self._context()}{self._experts()}.",
                f"Use a multiple of {self.model_size} processes, or a smaller layout.",
            )
        return world_size // self.sample_size

    def _context(self) -> str:
        if self.context_parallel_size == 1:
            return ""
        return f" x CP {self.context_parallel_size}"

    def _experts(self) -> str:
        if self.expert_model_parallel_size == 1:
            return ""
        return f" and their experts over EP {self.expert_model_parallel_size}"
