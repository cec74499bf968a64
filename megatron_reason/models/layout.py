"""How the rows of Hugging Face's tensors make up the shards of a Megatron parameter.

A rule names one Megatron parameter, the Hugging Face tensors in it, and the order of their rows.
From that and a rank's place follows which rectangle of which tensor the rank holds, so that import
reads and export writes nothing else. Not here: families, files, ranks that talk; no torch either.

H heads, G KV groups, d head width. Megatron's linear_qkv holds, for each KV group, its query heads,
then its key, then its value; tensor parallelism cuts these rows into equal parts, through a group
where there are fewer groups than ranks (the ranks gather it when they compute).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_reason.errors import ConversionError

HFConfig = Any
"""A transformers configuration object."""
Dims = tuple[int, ...]
"""Shape of a tensor."""


@dataclass(frozen=True)
class Run:
    """Rows of a Hugging Face tensor that stand together in Megatron's."""

    source: int
    """Which of the rule's tensors."""
    begin: int
    """Its first row."""
    rows: int
    """How many."""


@dataclass(frozen=True)
class Piece:
    """A rectangle of a Hugging Face tensor and the rows of a shard that hold the same numbers."""

    source: int
    """Which of the rule's tensors."""
    rows: slice
    """Rows of that tensor."""
    columns: slice
    """Columns of that tensor; without meaning for a vector."""
    local: slice
    """Rows of the shard, over all its columns."""


@dataclass(frozen=True)
class Sharding:
    """How Megatron shards a parameter, and which shard this is."""

    shape: Dims
    """Shape of one rank's shard."""
    dim: int | None
    """Dimension along which it is sharded; None where every tensor-parallel rank holds all."""
    rank: int
    """Which of the ranks that share it this one is."""
    size: int
    """How many share it."""


class Rule(Protocol):
    """One Megatron parameter and the Hugging Face tensors it is made of."""

    @property
    def megatron(self) -> str:
        """Megatron's name; `{i}` stands for the layer, `{e}` for the expert."""
        ...

    @property
    def hf(self) -> tuple[str, ...]:
        """Hugging Face's names, in order."""
        ...

    @property
    def is_vocab(self) -> bool:
        """Whether the rows are the vocabulary, padded in Megatron."""
        ...

    def blocks(self, shapes: Sequence[Dims], config: HFConfig) -> list[list[Run]]:
        """Order of the rows in Megatron's whole tensor, in blocks that are sharded one by one."""
        ...


@dataclass(frozen=True)
class Copy:
    """The same tensor under another name."""

    megatron: str
    source: str
    is_vocab: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        """The one Hugging Face name."""
        return (self.source,)

    def blocks(self, shapes: Sequence[Dims], config: HFConfig) -> list[list[Run]]:  # noqa: ARG002
        """All rows as they are."""
        return [[Run(0, 0, shapes[0][0])]]


@dataclass(frozen=True)
class QKV:
    """Query, key and value interleaved by KV group; weights [rows, D] and biases [rows] alike."""

    megatron: str
    source: str
    """Name with `{x}` for q, k and v."""
    is_vocab: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the three projections."""
        return tuple(self.source.replace("{x}", part) for part in "qkv")

    def blocks(self, shapes: Sequence[Dims], config: HFConfig) -> list[list[Run]]:  # noqa: ARG002
        """[H d], [G d], [G d] rows -> G times (H/G d, d, d) rows."""
        width = head_width(config)
        query = config.num_attention_heads // config.num_key_value_heads * width
        return [
            [
                run
                for group in range(config.num_key_value_heads)
                for run in (
                    Run(0, group * query, query),
                    Run(1, group * width, width),
                    Run(2, group * width, width),
                )
            ]
        ]


@dataclass(frozen=True)
class GateUp:
    """Gate over up, each sharded by itself."""

    megatron: str
    source: str
    """Name with `{x}` for gate and up."""
    is_vocab: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the two projections."""
        return tuple(self.source.replace("{x}", part) for part in ("gate", "up"))

    def blocks(self, shapes: Sequence[Dims], config: HFConfig) -> list[list[Run]]:  # noqa: ARG002
        """[F], [F] rows -> two blocks of F rows."""
        return [[Run(source, 0, shape[0])] for source, shape in enumerate(shapes)]


def head_width(config: HFConfig) -> int:
    """Width d of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class Layout:
    """A shard of a parameter and the Hugging Face tensors it is made of."""

    names: tuple[str, ...]
    """Hugging Face's names of the tensors."""
    blocks: Sequence[Sequence[Run]]
    """Order of their rows, see `Rule.blocks`."""
    sharding: Sharding
    """How the parameter is sharded, and which shard this is."""
    is_vocab: bool
    """Whether its rows are the vocabulary."""

    def pieces(self) -> Iterator[Piece]:
        """What the shard is made of; rows of vocabulary padding are in no piece."""
        sharding = self.sharding
        share = sharding.shape[0] // len(self.blocks)
        first = sharding.rank * share if sharding.dim == 0 else 0
        columns = slice(None)
        if sharding.dim == 1:
            width = sharding.shape[1]
            columns = slice(sharding.rank * width, (sharding.rank + 1) * width)
        for number, block in enumerate(self.blocks):
            position = 0
            for run in block:
                low, high = max(position, first), min(position + run.rows, first + share)
                if low < high:
                    begin = run.begin + low - position
                    local = number * share + low - first
                    rows = slice(begin, begin + high - low)
                    yield Piece(run.source, rows, columns, slice(local, local + high - low))
                position += run.rows


def lay_out(
    name: str, sharding: Sharding, rules: Sequence[Rule], config: HFConfig,
    shape_of: Callable[[str], Dims],
) -> Layout:  # fmt: skip
    """Layout of a shard of a Megatron parameter.

    Args:
        name: its name with global numbers of layer and expert.
        sharding: how it is sharded, and which shard is laid out.
        rules: the family's table.
        config: the checkpoint's configuration.
        shape_of: shape of a Hugging Face tensor by name.

    Raises:
        ConversionError: no rule covers the parameter, or tensors that do not fill it exactly.
    """
    rule, names = match(rules, name)
    shapes = [shape_of(hf) for hf in names]
    layout = Layout(names, rule.blocks(shapes, config), sharding, rule.is_vocab)
    if not _fills(layout, shapes):
        whole = _whole(sharding)
        raise ConversionError(
            name,
            f"the checkpoint's {', '.join(names)} has shape {', '.join(map(str, shapes))}; the "
            f"model expects {tuple(whole)} in all.",
            "Is config.json the one that belongs to these weights?",
        )
    return layout


def match(rules: Sequence[Rule], name: str) -> tuple[Rule, tuple[str, ...]]:
    """Rule for a Megatron parameter with global numbers, and Hugging Face's names for it.

    Raises:
        ConversionError: no rule covers the parameter.
    """
    for rule in rules:
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(rule.megatron))
        if found := re.fullmatch(pattern, name):
            return rule, tuple(_numbered(hf, found.groupdict()) for hf in rule.hf)
    raise ConversionError(
        name,
        "no rule of this architecture covers the parameter.",
        "Add one to the family's table in megatron_reason/models/families/.",
    )


def _numbered(name: str, numbers: Mapping[str, str]) -> str:
    for letter, number in numbers.items():
        name = name.replace(f"{{{letter}}}", number)
    return name


def _whole(sharding: Sharding) -> list[int]:
    whole = list(sharding.shape)
    if sharding.dim is not None:
        whole[sharding.dim] *= sharding.size
    return whole


def _fills(layout: Layout, shapes: Sequence[Dims]) -> bool:
    """Whether the tensors have the parameter's columns and, but for padding, just its rows."""
    rows, *columns = _whole(layout.sharding)
    room, rest = divmod(rows, len(layout.blocks))
    taken = Counter[int]()
    for block in layout.blocks:
        count = 0
        for run in block:
            taken[run.source] += run.rows
            count += run.rows
        if rest or count > room or (count < room and not layout.is_vocab):
            return False
    return all(
        taken[source] == shape[0] and list(shape[1:]) == columns
        for source, shape in enumerate(shapes)
    )
