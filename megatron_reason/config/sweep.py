"""A grid of runs: one recipe, and the values of some of its keys. Not here: running it."""

from itertools import product
from pathlib import Path

from pydantic import Field

from megatron_reason.config.base import Strict

Choice = bool | int | float | str


class SweepConfig(Strict):
    """A file that `mreason sweep` reads."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the sweep; its runs are called `<name>-0`, `<name>-1`, ..."""
    recipe: Path
    """YAML file that every run begins with."""
    grid: dict[str, tuple[Choice, ...]] = Field(..., min_length=1)
    """Values of each key, e.g. `train.optim.lr: [1e-4, 2e-4]`; every combination is a run."""
    dir: Path = Path("runs")
    """Folder that holds the runs' folders."""

    def points(self) -> list[dict[str, Choice]]:
        """One value of each key for every run, the last key changing fastest."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]

    def run_name(self, index: int) -> str:
        """Name of run number `index`."""
        return f"{self.name}-{index}"

    def arguments(self, index: int) -> list[str]:
        """What follows `mreason` to do run number `index`."""
        overrides = {"run.name": self.run_name(index), "run.dir": str(self.dir)}
        overrides |= {key: _as_yaml(value) for key, value in self.points()[index].items()}
        words = (word for key, value in overrides.items() for word in ("--set", f"{key}={value}"))
        return ["run", str(self.recipe), *words]


def _as_yaml(value: Choice) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
