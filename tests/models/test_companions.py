import json
from pathlib import Path

import pytest

from megatron_reason.models.companions import Changes, companions, copy_companions

TOKENIZER = b'{"chat_template":  "old \\u00e9", "eos_token": "</s>"}'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    config = {"rope_theta": 1e4, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_bytes(TOKENIZER)
    (folder / "generation_config.json").write_text('{"eos_token_id":[1,  2]}')
    for weights in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (folder / weights).write_text("old")
    (folder / "conversion_report.json").write_text("{}")
    return folder


def changed(source: Path, changes: Changes) -> dict[str, object]:
    """config.json after the changes, everything else compared with the source."""
    target = source.with_name("target")
    target.mkdir()
    copy_companions(source, target, changes)
    for path in companions(source):
        if path.name != "config.json":
            assert (target / path.name).read_bytes() == path.read_bytes()
    return json.loads((target / "config.json").read_text())


def test_nothing_but_what_speaks_of_weights_is_left_behind(source: Path) -> None:
    assert [path.name for path in companions(source)] == [
        "config.json", "generation_config.json", "tokenizer_config.json",
    ]  # fmt: skip
    changed(source, Changes())
    assert (source.with_name("target") / "config.json").read_bytes() == (
        source / "config.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 5e5}),
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_theta": 5e5, "rope_scaling": None}),
        ({}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_theta": 1e4}}, {"rope_parameters": {"rope_theta": 5e5}}),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}},
            {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
        ),
    ],
)
def test_the_rotary_base_is_changed_wherever_it_is_kept(
    source: Path, before: dict[str, object], after: dict[str, object]
) -> None:
    (source / "config.json").write_text(json.dumps({"hidden_size": 8, **before}))
    found = changed(source, Changes(rope_theta=5e5, max_position_embeddings=128))
    assert found == {"hidden_size": 8, "max_position_embeddings": 128, **after}


def test_a_chat_template_is_written_where_libraries_old_and_new_look(source: Path) -> None:
    target = source.with_name("target")
    target.mkdir()
    copy_companions(source, target, Changes(chat_template="{{ 'ü' }}"))
    assert (target / "chat_template.jinja").read_text(encoding="utf-8") == "{{ 'ü' }}"
    assert json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8")) == {
        "chat_template": "{{ 'ü' }}", "eos_token": "</s>",
    }  # fmt: skip
    (source / "tokenizer_config.json").write_text('{"eos_token":  "</s>"}')
    copy_companions(source, target, Changes(chat_template="x"))
    assert (target / "tokenizer_config.json").read_text() == '{"eos_token":  "</s>"}'
    assert (target / "chat_template.jinja").read_text() == "x"
