"""How weights go from the trainer to the engine that makes its rollouts."""

from pydantic import Field

from megatron_reason.config.base import Strict


class SyncConfig(Strict):
    """Section `sync`: buckets, and what is checked after each transfer."""

    bucket_mb: int = Field(default=64, ge=1)
    """Tensors sent together, in MiB; a larger tensor goes alone. Rank 0 holds one, the engine
    two."""
    probe_tolerance: float = Field(default=0.1, gt=0)
    """Mean |difference| of a probe token's log-probability between engine and trainer, in nats,
    above which the run stops."""
    standby_timeout_s: float = Field(default=6 * 3600, gt=0)
    """Seconds the other ranks wait while rank 0 generates; they notice its death at once."""
