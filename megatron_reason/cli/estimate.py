"""What `plan --gpus` prints: memory, speed, layouts that fit. Not here: the estimates."""

from typing import TYPE_CHECKING

import typer

from megatron_reason.cli.tables import show_table

if TYPE_CHECKING:
    from megatron_reason.pipeline.estimate import Machine, Proposal
    from megatron_reason.pipeline.run_config import RunConfig
    from megatron_reason.pipeline.workload import Training

_MOST_LAYOUTS = 5
_HEADER = [
    "layout", "weights", "gradients", "optimizer", "activations", "logits", "other", "total",
    "tokens/s", "hours",
]  # fmt: skip


def show_estimate(settings: "RunConfig", gpus: str, mfu: float) -> None:
    """Print for each training what its layout comes to, and the fastest that fit."""
    from megatron_reason.pipeline.estimate import cheapest_changes, propose, ranked
    from megatron_reason.pipeline.workload import engine_objection, machine_of, trainings

    machine = machine_of(gpus)
    for found in trainings(settings, ranks=machine.count, machine=machine):
        asked = propose(found.sizes, found.layout, found.work, machine, found.extras, mfu=mfu)
        best = ranked(
            found.sizes, found.work, machine, found.extras, tokens=found.layout.tokens, mfu=mfu
        )
        _show(found, machine, asked, best, mfu)
        if asked.fits:
            continue
        typer.echo(
            f"{found.variant}: {asked.memory.total / 2**30:.0f} GiB do not fit into the "
            f"{machine.usable / 2**30:.0f} GiB that a {machine.gpu} leaves for tensors. What would:"
        )
        changes = cheapest_changes(
            found.sizes, found.layout, found.extras, limit=machine.usable,
            longest=found.work.longest,
        )  # fmt: skip
        for words, total in changes:
            typer.echo(f"  {words}  ({total / 2**30:.0f} GiB)")
        if not changes:
            typer.echo("  no single change; take one of the layouts above, or more GPUs")
    if (refusal := engine_objection(settings, machine)) is not None:
        typer.echo(refusal)


def _show(
    found: "Training", machine: "Machine", asked: "Proposal", best: "list[Proposal]", mfu: float
) -> None:
    title = (
        f"{found.variant} on {machine.count} x {machine.gpu}, GiB of the fullest rank; "
        f"{mfu:.0%} of peak and sequences of {found.work.mean_length:.0f} tokens are assumed"
    )
    rows = [_row("as configured: ", found, asked)]
    rows += [_row("", found, proposal) for proposal in best[:_MOST_LAYOUTS]]
    show_table(title, _HEADER, rows)


def _row(prefix: str, found: "Training", proposal: "Proposal") -> list[str]:
    memory = proposal.memory
    parts = [
        memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits,
        memory.reference + memory.engine, memory.total,
    ]  # fmt: skip
    hours = "?"
    if found.updates is not None and proposal.tokens_per_s:
        seconds = found.updates * found.work.tokens_per_update / proposal.tokens_per_s
        hours = f"{seconds / 3600:.1f}"
    fits = "" if proposal.fits else " (too large)"
    return [
        f"{prefix}{proposal.layout}{fits}", *(f"{part / 2**30:.1f}" for part in parts),
        f"{proposal.tokens_per_s:.0f}", hours,
    ]  # fmt: skip
