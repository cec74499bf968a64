"""Which rectangle of which tensor a rank holds, against Megatron's layout written with torch."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config

from megatron_reason.errors import ConversionError
from megatron_reason.models.architecture import Experts, Shape, decoder_params
from megatron_reason.models.layout import QKV, Copy, GateUp, Rule, Sharding, lay_out, match

CONFIG = Qwen2Config(hidden_size=24, num_attention_heads=6, num_key_value_heads=2)
"""Heads of width 4: two groups of 12 + 4 + 4 rows."""


def numbered(rows: int, columns: int, start: int = 0) -> Tensor:
    return torch.arange(rows * columns).reshape(rows, columns) + start


def assembled(rule: Rule, sources: list[Tensor], sharding: Sharding) -> Tensor:
    """The shard, from the pieces; -1 where no piece is."""
    by_name = dict(zip(rule.hf, sources, strict=True))
    layout = lay_out(rule.megatron, sharding, [rule], CONFIG, lambda n: tuple(by_name[n].shape))
    shard = torch.full(sharding.shape, -1)
    for piece in layout.pieces():
        source = by_name[layout.names[piece.source]]
        assert (shard[piece.local] == -1).all(), "a row has two pieces"
        shard[piece.local] = source[piece.rows, piece.columns]
    return shard


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_qkv_is_interleaved_by_group_and_cut_into_equal_rows(size: int) -> None:
    query, key, value = numbered(24, 3), numbered(8, 3, 1000), numbered(8, 3, 2000)
    groups = [torch.cat(part) for part in zip(*(x.chunk(2) for x in (query, key, value)))]  # noqa: B905
    whole = torch.cat(groups)
    rule = QKV("qkv", "{x}_proj")
    for rank, expected in enumerate(whole.chunk(size)):
        sharding = Sharding(tuple(expected.shape), 0, rank, size)
        assert torch.equal(assembled(rule, [query, key, value], sharding), expected)


def test_gate_and_up_are_sharded_one_by_one() -> None:
    gate, up = numbered(6, 2), numbered(6, 2, 1000)
    rule = GateUp("fc1", "{x}_proj")
    for rank in range(3):
        expected = torch.cat([gate.chunk(3)[rank], up.chunk(3)[rank]])
        shard = assembled(rule, [gate, up], Sharding((4, 2), 0, rank, 3))
        assert torch.equal(shard, expected)


def test_columns_are_sharded_and_replicas_hold_all() -> None:
    whole = numbered(5, 6)
    for rank, expected in enumerate(whole.chunk(3, 1)):
        shard = assembled(Copy("fc2", "down"), [whole], Sharding((5, 2), 1, rank, 3))
        assert torch.equal(shard, expected)
        shard = assembled(Copy("norm", "norm"), [whole], Sharding((5, 6), None, rank, 3))
        assert torch.equal(shard, whole)


def test_vocabulary_is_padded_over_as_many_ranks_as_it_takes() -> None:
    whole = numbered(5, 2)
    rule = Copy("embedding", "embed", is_vocab=True)
    shards = [assembled(rule, [whole], Sharding((3, 2), 0, rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat(shards)[:5], whole)
    assert (torch.cat(shards)[5:] == -1).all()


@pytest.mark.parametrize(
    ("rule", "shape", "sharding"),
    [
        (Copy("a", "b"), (31, 4), Sharding((32, 4), None, 0, 1)),
        (Copy("a", "b"), (32, 4), Sharding((32, 5), None, 0, 1)),
        (Copy("a", "b"), (32, 4), Sharding((32, 4), 1, 0, 2)),
        (Copy("a", "b", is_vocab=True), (33, 4), Sharding((16, 4), 0, 0, 2)),
        (QKV("a", "{x}"), (24, 3), Sharding((40, 3), 0, 0, 1)),
        (GateUp("a", "{x}"), (6, 3), Sharding((7, 3), 0, 0, 2)),
    ],
)
def test_tensors_that_do_not_fill_the_parameter_are_refused(
    rule: Rule, shape: tuple[int, int], sharding: Sharding
) -> None:
    with pytest.raises(ConversionError, match="the model expects"):
        lay_out("a", sharding, [rule], CONFIG, lambda _: shape)


def test_a_parameter_is_found_by_its_numbers_and_one_without_a_rule_is_named() -> None:
    rules = decoder_params(Shape(experts=Experts(4, 2, 16, renormalised=True)))
    rule, names = match(rules, "decoder.layers.12.mlp.experts.local_experts.3.linear_fc2.weight")
    assert names == ("model.layers.12.mlp.experts.3.down_proj.weight",)
    assert rule.hf == ("model.layers.{i}.mlp.experts.{e}.down_proj.weight",)
    with pytest.raises(ConversionError, match=r"decoder\.layers\.0\.mlp\.router"):
        match(decoder_params(Shape()), "decoder.layers.0.mlp.router.weight")
