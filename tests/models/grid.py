"""Every family on every layout of four processes: what comes back, and what is computed.

Used by the tests of the bridge and by the tool that writes its support table.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.topology import Topology
from tests.distributed import spawn
from tests.models import tiny

PROCESSES = 4
LAYOUTS: dict[str, dict[str, int]] = {
    "TP 1 PP 1": {},
    "TP 2 PP 1": {"tensor_model_parallel_size": 2},
    "TP 4 PP 1": {"tensor_model_parallel_size": 4},
    "TP 1 PP 2": {"pipeline_model_parallel_size": 2},
    "TP 2 PP 2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "TP 1 PP 4": {"pipeline_model_parallel_size": 4},
}
"""Two KV groups, so that TP 4 cuts through them; what is left of four processes is DP."""
EXPERT_LAYOUTS: dict[str, dict[str, int]] = {
    "EP 4": {"expert_model_parallel_size": 4},
    "TP 2 EP 2": {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2},
    "PP 2 EP 2": {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2},
    "TP 2 EP 2 ETP 1": {
        "tensor_model_parallel_size": 2, "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
}  # fmt: skip


ENOUGH_FOR_A_VARIANT = ("TP 2 PP 2", "EP 4")
"""Layouts of the families that differ from a class' first ones in numbers, not in tensors."""


def cases() -> list[tuple[str, str]]:
    """(layout, family), grouped by layout."""
    return [
        (layout, family)
        for layout in LAYOUTS | EXPERT_LAYOUTS
        for family in tiny.FAMILIES
        if (layout in LAYOUTS or "moe" in family.lower())
        and (family.endswith("tied") or layout in ENOUGH_FOR_A_VARIANT)
    ]


@dataclass(frozen=True)
class Outcome:
    """What a family did on a layout."""

    family: str
    layout: str
    files_differ: list[str]
    """Files that did not come back byte for byte."""
    gap: float
    """Largest |difference| of a token's log-probability from transformers, in nats."""


def samples() -> list[TokenizedSample]:
    """Three sequences, all but their first tokens supervised."""
    generator = torch.Generator().manual_seed(2)
    return [
        TokenizedSample(
            str(n), Role.DEMO,
            tuple(torch.randint(0, tiny.VOCAB, (n,), generator=generator).tolist()), 1,
        )
        for n in (23, 7, 41)
    ]  # fmt: skip


def parallel_of(layout: dict[str, int]) -> ParallelConfig:
    """The configuration; tokens are sharded too where tensors are."""
    tensor = layout.get("tensor_model_parallel_size", 1)
    return ParallelConfig.model_validate({**layout, "sequence_parallel": tensor > 1})


def measure(folder: Path) -> list[Outcome]:
    """Every case; `folder` must be empty."""
    expected = {}
    for family in tiny.FAMILIES:
        made = tiny.make(family, folder / "in" / family, dtype="bfloat16", max_shard_size="30KB")
        expected[family] = [tiny.logprobs(made, sample.ids) for sample in samples()]
    torch.save(expected, folder / "expected.pt")
    spawn(_measure, PROCESSES, str(folder))
    found: list[Any] = json.loads((folder / "outcomes.json").read_text())
    return [Outcome(**outcome) for outcome in found]


def _measure(rank: int, world_size: int, root: str) -> None:
    from megatron.core import parallel_state

    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.exporter import export_hf

    folder = Path(root)
    expected = torch.load(folder / "expected.pt")
    outcomes: list[Outcome] = []
    for layout, sizes in (LAYOUTS | EXPERT_LAYOUTS).items():
        parallel = parallel_of(sizes)
        topology = init_topology(parallel)
        for family in [family for at, family in cases() if at == layout]:
            source, target = folder / "in" / family, folder / "out"
            # Stored in bfloat16, computed in float32, and exported in bfloat16 again.
            model = ModelConfig(path="x", dtype="float32")
            stage = load_model(model, source, parallel, topology)
            export_hf(stage, source, target, topology)
            logprobs = _logprobs(stage, topology)
            if rank == 0:
                gap = (logprobs - torch.cat(expected[family])).abs().max().item()
                outcomes.append(Outcome(family, layout, _differences(source, target), gap))
                shutil.rmtree(target)
        parallel_state.destroy_model_parallel()
    if rank == 0:
        found = [asdict(outcome) for outcome in outcomes]
        (folder / "outcomes.json").write_text(json.dumps(found))


def _logprobs(stage: Any, topology: Topology) -> Tensor:
    """Log-probability of every supervised token, on every rank."""
    from megatron_reason.engine.forward import PLAIN, statistics_step
    from megatron_reason.engine.packing import pack
    from megatron_reason.engine.prepass import forward_only

    batch = pack(samples(), rounding=topology.rounding)
    step = statistics_step(topology, PLAIN, lambda stats, _: stats.logprob_T)
    collected = forward_only(stage, [batch], step)
    shared = [collected[0][batch.supervised_N] if topology.is_last_stage else None]
    dist.broadcast_object_list(shared, src=PROCESSES - 1)
    assert shared[0] is not None
    return shared[0]


def _differences(source: Path, target: Path) -> list[str]:
    names = {path.name for folder in (source, target) for path in folder.iterdir()}
    return sorted(name for name in names if _content(source / name) != _content(target / name))


def _content(path: Path) -> object:
    if not path.is_file():
        return None
    # The index is made from what was written, so it is compared as what it says.
    return json.loads(path.read_text()) if ".index." in path.name else path.read_bytes()
