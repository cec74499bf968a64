from typing import Annotated, Literal

import pytest
from pydantic import Field, SerializeAsAny, model_validator

from megatron_reason.config.base import Strict
from megatron_reason.config.load import PickedBy, load_config, refuse
from megatron_reason.errors import ConfigError
from megatron_reason.registry import Registry

SHAPES: Registry[type["Shape"]] = Registry("shape", "megatron_reason.config")


class Shape(Strict):
    kind: str


@SHAPES.register("circle")
class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)
    """Distance from centre to rim, in metres."""


class Square(Strict):
    rule: Literal["square"]
    side: float


class Line(Strict):
    rule: Literal["line"]
    length: float


class Optim(Strict):
    lr: float
    schedule: Literal["cosine", "linear"] = "cosine"


class Item(Strict):
    name: str
    count: int = 1


class Root(Strict):
    seed: int = 0
    optim: Optim
    items: tuple[Item, ...] = ()
    shape: Annotated[SerializeAsAny[Shape], PickedBy("kind", SHAPES.get)] | None = None
    rule: Annotated[Square | Line, Field(discriminator="rule")] | None = None

    @model_validator(mode="after")
    def _seeds_are_even(self):
        if self.seed % 2:
            refuse([(("seed",), f"{self.seed} is odd.", "Use an even one.")])
        return self


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides, **others):
        for name, content in {**others, "main": text}.items():
            (tmp_path / f"{name}.yaml").write_text(content)
        return load_config(tmp_path / "main.yaml", overrides, Root)

    return load


def refusal(load, text, *overrides, **others):
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides, **others)
    return str(caught.value)


def test_values_arrive_typed(load):
    root = load("seed: 4\noptim: {lr: 1e-4}\nitems:\n- {name: a, count: 3}\n")
    assert root == Root(seed=4, optim=Optim(lr=1e-4), items=(Item(name="a", count=3),))


def test_plugin_is_validated_by_its_own_class_and_written_out_whole(load):
    root = load("optim: {lr: 1}\nshape: {kind: circle, radius: 2}")
    assert root.shape == Circle(radius=2)
    assert root.model_dump()["shape"] == {"kind": "circle", "radius": 2.0}


@pytest.mark.parametrize(
    ("text", "place", "key", "words"),
    [
        ("optim: {lr: 1}\nsede: 3", 2, "sede", ["'sede'", "3", "Did you mean 'seed'?"]),
        ("optim:\n  lr: 1\n  schedul: linear", 3, "optim.schedul", ["'schedule'"]),
        ("optim:\n  lr: 1\n  schedule: cosin", 3, "optim.schedule", ["'cosin'", "'cosine'"]),
        ("optim: {lr: fast}", 1, "optim.lr", ["'fast'", "number"]),
        ("seed: 2", 1, "optim", ["missing"]),
        ("seed: 2\noptim:\n  schedule: linear", 2, "optim.lr", ["missing"]),
        ("seed: 3\noptim: {lr: 1}", 1, "seed", ["3 is odd.", "Use an even one."]),
        ("optim: {lr: 1}\nitems:\n- name: a\n  cuont: 3", 4, "items.0.cuont", ["'count'"]),
        ("optim: {lr: 1}\nshape: {kind: circel}", 2, "shape.kind", ["'circel'", "'circle'"]),
        (
            "optim: {lr: 1}\nshape:\n  kind: circle\n  radios: 3", 4, "shape.radios",
            ["Did you mean 'radius'?"],
        ),
        (
            "optim: {lr: 1}\nshape:\n  kind: circle\n  radius: -3", 4, "shape.radius",
            ["-3", "greater than 0", "Distance from centre to rim"],
        ),
        ("optim: {lr: 1}\nshape: {radius: 3}", 2, "shape.kind", ["None"]),
        ("optim: {lr: 1}\nrule: {rule: sqare, side: 1}", 2, "rule", ["'sqare'", "'square'"]),
        ("optim: {lr: 1}\nrule:\n  rule: line\n  lenght: 1\n  length: 2", 4, "rule.lenght",
         ["Did you mean 'length'?"]),
    ],
)  # fmt: skip
def test_refusals_name_file_line_key_value_and_nearest_name(load, text, place, key, words):
    message = refusal(load, text)
    assert f"main.yaml:{place}  {key}\n" in message
    for word in words:
        assert word in message


def test_all_problems_are_reported_together_in_order(load):
    message = refusal(load, "sede: 1\noptim:\n  lrr: 1\nitems: [{name: a, count: x}]")
    assert "4 problems" in message
    keys = ["sede", "optim.lr\n", "optim.lrr", "items.0.count"]
    positions = [message.index(f"  {key}") for key in keys]
    assert positions[0] < min(positions[1:3]) < max(positions[1:3]) < positions[3]


def test_duplicate_keys_are_refused(load):
    message = refusal(load, "seed: 2\noptim: {lr: 1}\nseed: 4")
    assert "main.yaml:3  seed" in message
    assert "main.yaml:1" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: 1", ["main.yaml:1", "no YAML"]),
        ("- 1\n- 2", ["main.yaml:1", "mapping"]),
        ("on: 3\noptim: {lr: 1}", ["main.yaml:1", "quotes", "'on'"]),
        ("optim: &a [*a]", ["contains itself"]),
    ],
)
def test_what_is_no_configuration_is_refused(load, text, words):
    message = refusal(load, text)
    for word in words:
        assert word in message


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml", [], Root)


def test_extends_merges_sections_left_to_right_and_replaces_lists(load):
    root = load(
        "extends: [a.yaml, b.yaml]\noptim: {schedule: linear}",
        a="seed: 2\noptim: {lr: 1}\nitems: [{name: a}, {name: b}]",
        b="seed: 4\nitems: [{name: c}]",
    )
    assert root.seed == 4
    assert root.optim == Optim(lr=1, schedule="linear")
    assert [item.name for item in root.items] == ["c"]


def test_extends_is_relative_to_the_file_that_says_it(load, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text("extends: ../top.yaml\nseed: 6")
    root = load("extends: deep/base.yaml", top="seed: 2\noptim: {lr: 3}")
    assert (root.seed, root.optim.lr) == (6, 3)


def test_errors_in_extended_files_are_placed_there(load):
    message = refusal(load, "extends: a.yaml\noptim: {lr: 1}", a="\n\nsede: 3")
    assert "a.yaml:3  sede" in message


def test_circular_extends_is_refused(load):
    message = refusal(load, "extends: a.yaml", a="extends: main.yaml")
    assert "a.yaml -> " in message
    assert "circle" in message


def test_overrides_are_yaml_and_reach_into_lists_by_index_and_name(load):
    text = "optim: {lr: 1}\nitems: [{name: a}, {name: b}]"
    root = load(
        text, "optim.lr=5e-5", "items.0.count=7", "items.b.count=8", "shape={kind: circle}",
        "shape.radius=2", "seed=2", "seed=8",
    )  # fmt: skip
    assert root.optim.lr == 5e-5
    assert [item.count for item in root.items] == [7, 8]
    assert root.shape == Circle(radius=2)
    assert root.seed == 8


def test_overrides_alone_make_a_configuration():
    assert load_config(None, ["optim.lr=1", "seed=2"], Root) == Root(seed=2, optim=Optim(lr=1))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr", ["dotted key", "--set optim.lr"]),
        ("optim.rl=3", ["--set optim.rl  optim.rl", "'rl'"]),
        ("items.5.count=3", ["has 1 items", "'5'"]),
        ("items.aa.count=3", ["Did you mean 'a'?"]),
        ("seed.low=3", ["'seed' is 2, not a section"]),
        ("optim.lr=[1", ["--set optim.lr", "no YAML"]),
    ],
)
def test_bad_overrides_are_refused_by_name(load, override, words):
    message = refusal(load, "seed: 2\noptim: {lr: 1}\nitems: [{name: a}]", override)
    for word in words:
        assert word in message


NAMED = "stages:\n  - {name: a, size: 1}\n  - {name: b, size: 2}\n"


class _Stage(Strict):
    name: str
    """Name."""
    size: int = 0
    """Size."""


class _Stages(Strict):
    stages: tuple[_Stage, ...]
    """In order."""


def test_a_section_over_a_list_changes_and_adds_the_items_it_names(tmp_path):
    (tmp_path / "base.yaml").write_text(NAMED)
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: base.yaml\nstages: {b: {size: 5}, c: {size: 7}}\n")
    found = load_config(mine, [], _Stages).stages
    assert [(stage.name, stage.size) for stage in found] == [("a", 1), ("b", 5), ("c", 7)]
    mine.write_text("extends: base.yaml\nstages: {b: {siez: 5}}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:2  stages.1.siez[^$]*'size'"):
        load_config(mine, [], _Stages)
    mine.write_text("extends: base.yaml\nstages:\n  d: 5\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:3  d[^$]*no item of the list below"):
        load_config(mine, [], _Stages)
