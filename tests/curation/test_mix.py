"""Mixing: token ids by the template's construction, open ends, lengths, roles, refusals."""

import json
import shutil

import pytest
from pydantic import ValidationError

from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.mix import Mix, MixConfig
from megatron_reason.errors import DataError, SchemaError
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Finish, Message
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples


def mix(tmp_path, model_folder, tables, as_role=None, **config):
    inputs = {name: write_samples(tmp_path / name, rows) for name, rows in tables.items()}
    parts = [{"table": name, "as_role": (as_role or {}).get(name)} for name in tables]
    config = MixConfig(name="mixed", tables=parts, **config)
    assert config.inputs() == tuple(inputs)
    result = Mix(config).run(context(tmp_path / "out", inputs, model_folder=model_folder))
    return result, read_table(tmp_path / "out", Kind.TOKENS).to_dicts()


def test_ids_are_prompt_then_response_then_stop(tmp_path, smollm2):
    rows = [sample(0, role="demo")]
    result, (row,) = mix(tmp_path, smollm2, {"a": rows})
    template = load_template(TemplateConfig(), smollm2)
    prompt = template.prompt_ids([Message("user", "Problem 0?")])
    assert row["num_prompt_tokens"] == len(prompt)
    assert row["ids"][: len(prompt)] == list(prompt)
    response = row["ids"][len(prompt) :]
    assert template.decode(response).strip() == "It is 2."
    assert set(response) & set(template.stop_token_ids)
    assert (row["sample_id"], row["role"]) == (rows[0].sample_id, "demo")
    assert row["template_hash"] == template.hash
    assert result.counts["role_demo"] == 1


def test_a_response_cut_at_its_limit_keeps_an_open_end(tmp_path, smollm2):
    rows = [
        sample(0, role="negative", finish=finish) for finish in (Finish.STOP, Finish.LENGTH)
    ]  # fmt: skip
    _, (ended, cut) = mix(tmp_path, smollm2, {"a": rows[:1], "b": rows[1:]})
    stops = set(load_template(TemplateConfig(), smollm2).stop_token_ids)
    assert not stops & set(cut["ids"][cut["num_prompt_tokens"] :])
    assert ended["ids"][: len(cut["ids"])] == cut["ids"]
    assert ended["ids"][len(cut["ids"])] in stops


def test_empty_responses_are_set_aside(tmp_path, smollm2):
    texts = ("It is 2.", "", " ")
    rows = [sample(number, role="demo", response=text) for number, text in enumerate(texts)]
    result, taken = mix(tmp_path, smollm2, {"a": rows})
    assert [row["sample_id"] for row in taken] == [rows[0].sample_id]
    assert result.counts["empty response"] == 2


def test_overlong_sequences_are_dropped_and_counted_or_refused(tmp_path, smollm2):
    rows = [sample(0, role="demo"), sample(1, role="demo", response="word " * 300)]
    result, taken = mix(tmp_path / "a", smollm2, {"a": rows}, max_tokens=128)
    assert [row["sample_id"] for row in taken] == [rows[0].sample_id]
    assert result.counts["longer than max_tokens"] == 1
    assert (tmp_path / "a" / "out" / "quarantine.parquet").is_file()
    lengths = {k: v for k, v in result.counts.items() if k.startswith("tokens_up_to_")}
    assert sum(lengths.values()) == 1
    with pytest.raises(DataError, match="max_tokens 128"):
        mix(tmp_path / "b", smollm2, {"a": rows}, max_tokens=128, overlong="refuse")
    with pytest.raises(DataError, match="nothing is left"):
        mix(tmp_path / "c", smollm2, {"a": rows[1:]}, max_tokens=128)


def test_roles_come_from_select_or_from_the_mixture(tmp_path, smollm2):
    rows = [sample(0)]
    with pytest.raises(SchemaError, match="role"):
        mix(tmp_path / "a", smollm2, {"a": rows})
    _, (row,) = mix(tmp_path / "b", smollm2, {"a": rows}, as_role={"a": "negative"})
    assert row["role"] == "negative"
    both = {"a": "demo", "b": "negative"}
    with pytest.raises(DataError, match="imitated and suppressed"):
        mix(tmp_path / "c", smollm2, {"a": rows, "b": rows}, as_role=both)
    with pytest.raises(ValidationError):
        MixConfig(name="x", tables=[])


def test_held_out_problems_are_never_trained_on(tmp_path, smollm2):
    rows = [sample(0, role="demo"), sample(1, role="demo", split="heldout")]
    result, taken = mix(tmp_path, smollm2, {"a": rows})
    assert [row["sample_id"] for row in taken] == [rows[0].sample_id]
    assert result.counts["held-out problem"] == 1


def test_a_tokenizer_of_another_model_is_refused(tmp_path, smollm2):
    model = tmp_path / "model"
    model.mkdir()
    for path in smollm2.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(DataError, match="vocab_size 100"):
        mix(tmp_path, model, {"a": [sample(0, role="demo")]})
