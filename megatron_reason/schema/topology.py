"""This rank's place among the others, as a frozen value that is handed around.

Only `engine/topology.py` builds one from Megatron's state; everybody else receives it. Not here:
any call to `torch.distributed`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Rounding:
    """What numbers of tokens are rounded up to, so that ranks can share them equally."""

    sequence: int = 1
    """Tokens of each packed sequence: context parallelism cuts it into 2 CP pieces."""
    pack: int = 1
    """Tokens of each micro-batch: sequence parallelism shares a rank's tokens, too."""

    def of_sequence(self, num_tokens: int) -> int:
        """Places that a sequence takes."""
        return num_tokens + -num_tokens % self.sequence

    def of_pack(self, num_tokens: int) -> int:
        """Places that a micro-batch with rounded sequences takes; never none."""
        return max(num_tokens + -num_tokens % self.pack, self.pack)


@dataclass(frozen=True)
class Topology:
    """Coordinates and process groups of one rank.

    A group is None where it would have a single member, so single-process code needs no
    torch.distributed at all.
    """

    rank: int = 0
    world_size: int = 1
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    dp_rank: int = 0
    dp_size: int = 1
    cp_rank: int = 0
    cp_size: int = 1
    ep_rank: int = 0
    ep_size: int = 1
    expert_tp_rank: int = 0
    expert_tp_size: int = 1
    token_multiple: int = 1
    """What the tokens on each rank are a multiple of."""
    tp_group: "ProcessGroup | None" = None
    pp_group: "ProcessGroup | None" = None
    dp_group: "ProcessGroup | None" = None
    cp_group: "ProcessGroup | None" = None

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the input embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the LM head and computes losses."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_first_copy(self) -> bool:
        """Whether this rank is the first of those that hold the same weights."""
        return self.dp_rank == 0 and self.cp_rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this rank writes metrics: one voice for the whole job, on the last stage."""
        return self.is_last_stage and self.is_first_copy and self.tp_rank == 0

    @property
    def rounding(self) -> Rounding:
        """What this layout needs numbers of tokens to be multiples of."""
        sequence = 2 * self.cp_size if self.cp_size > 1 else 1
        return Rounding(sequence, sequence * self.tp_size * self.token_multiple)

    def describe(self) -> str:
        """One line for the log: 'TP 2 x PP 2 x DP 1 = 4 processes'."""
        context = f" x CP {self.cp_size}" if self.cp_size > 1 else ""
        experts = f" (EP {self.ep_size})" if self.ep_size > 1 else ""
        return (
            f"TP {self.tp_size} x PP {self.pp_size}{context} x DP {self.dp_size}{experts} = "
            f"{self.world_size} processes"
        )
