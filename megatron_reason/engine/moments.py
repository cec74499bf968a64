"""Several states of one optimizer over the same weights, of which one is in use.

A method that alternates between two losses may want the moments and step counts of AdamW apart, so
that the one loss's gradients do not steer the other's steps. Main weights are shared: they are the
weights. Changing states moves references and copies nothing. Not here: which update uses which
state (`UpdatePlan.optimizer_state`), how states are stored (`checkpoint.py`).
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

State = dict[Tensor, dict[str, Any]]


def inner_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers that Megatron chains, or the one there is."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


class Moments:
    """States 0 to `number` - 1 of `optimizer`, each empty until it is used first."""

    def __init__(self, optimizer: MegatronOptimizer, number: int) -> None:
        self._torch = [one.optimizer for one in inner_optimizers(optimizer)]
        self._away: list[list[tuple[State, list[Any]]]] = [
            [(defaultdict(dict), [None] * len(each.param_groups)) for each in self._torch]
            for _ in range(number)
        ]
        self._used = 0
        self.number = number

    def use(self, index: int) -> None:
        """Let the optimizer's next step take and advance state `index`."""
        if index == self._used:
            return
        for which, each in enumerate(self._torch):
            steps = [group.pop("step", None) for group in each.param_groups]
            self._away[self._used][which] = (each.state, steps)
            each.state, steps = self._away[index][which]
            # Transformer Engine's optimizer counts steps by group, torch's in the state.
            for group, step in zip(each.param_groups, steps, strict=True):
                if step is not None:
                    group["step"] = step
        self._used = index

    @contextmanager
    def each(self, index: int) -> Iterator[None]:
        """State `index` is in use; afterwards the one that was before."""
        before = self._used
        self.use(index)
        try:
            yield
        finally:
            self.use(before)
