"""Loss and gradient of a method on fixture F, through the real op and the real aggregation."""

from typing import Any

import torch
from torch import Tensor

from megatron_reason.engine.aggregation import global_counts, weighted_loss
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import Method, TrainState
from megatron_reason.schema.topology import Topology
from tests import fixture_f


def loss_and_gradient(method: Method[Any], roles: tuple[Role, ...]) -> tuple[float, Tensor]:
    """Loss of the four sequences with `roles`, and its gradient [8, 5] in the logits."""
    logits = fixture_f.LOGITS.clone().requires_grad_()
    return _run(method, roles, logits, None)


def sharded_loss_and_gradient(
    method: Method[Any], roles: tuple[Role, ...], rank: int, world_size: int
) -> tuple[float, Tensor]:
    """The same with this rank's columns of the logits, the last rank's padded."""
    columns = -(-5 // world_size)
    padded = torch.nn.functional.pad(fixture_f.LOGITS, (0, columns * world_size - 5), value=77.0)
    local = padded[:, rank * columns : (rank + 1) * columns].clone().requires_grad_()
    return _run(method, roles, local, torch.distributed.group.WORLD)


def _run(
    method: Method[Any], roles: tuple[Role, ...], logits: Tensor, group: Any
) -> tuple[float, Tensor]:
    batch = fixture_f.batch(roles)
    terms = method.terms(TrainState(0, 1))
    counts = global_counts(terms, [batch], Topology(), torch.device("cpu"))
    stats = token_stats_from_logits(logits, fixture_f.TARGET, tp_group=group, vocab_size=5)
    loss, _ = weighted_loss(terms, method.token_losses(stats, batch), batch, counts)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad
