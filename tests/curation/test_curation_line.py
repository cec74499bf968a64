"""From generated problems to a training table, through every stage that needs no model."""

import math

import polars as pl
from pydantic import TypeAdapter

from megatron_reason.curation.grade import Grade, GradeConfig
from megatron_reason.curation.ingest import Ingest, IngestConfig
from megatron_reason.curation.mix import Mix, MixConfig
from megatron_reason.curation.select import Select, SelectConfig
from megatron_reason.files import hash_text
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Message
from megatron_reason.schema.tables import Kind, read_table, write_table
from tests.curation.stages import context


def with_invented_perplexities(source, target, tokenizer):
    """What the stage `score` would fill in, made from a hash of the text: no model runs here."""
    rows = read_table(source, Kind.SAMPLES)
    ppl = [2.0 + int(hash_text(text), 16) % 2000 / 1000 for text in rows["response"]]
    lengths = [len(tokenizer(text)["input_ids"]) for text in rows["response"]]
    scored = rows.with_columns(
        ppl=pl.Series(ppl),
        num_tokens=pl.Series(lengths),
        nll_sum=pl.Series([n * math.log(p) for n, p in zip(lengths, ppl, strict=True)]),
    )
    write_table(target, Kind.SAMPLES, scored)
    return target


def test_ingest_grade_select_mix(tmp_path, smollm2):
    ingest = IngestConfig(
        name="teacher", source="reasoning_gym:gsm_symbolic", size=120, heldout_fraction=0.2,
        solutions_per_problem=4,
    )  # fmt: skip
    folders = {name: tmp_path / name for name in ("teacher", "graded", "demos", "mixed")}
    ingested = Ingest(ingest).run(context(folders["teacher"], seed=7))
    heldout = (
        read_table(folders["teacher"], Kind.PROBLEMS)
        .filter(pl.col("split") == "heldout")["family"]
        .unique()
    )

    grade = GradeConfig(name="graded", table="teacher", keep="correct", deadline_s=30)
    graded = Grade(grade).run(context(folders["graded"], folders))
    # Every rendering of a worked solution states the right answer.
    assert graded.num_rows == ingested.num_rows == graded.counts["status_ok"]

    config = context(tmp_path).template
    template = load_template(config, smollm2)
    folders["scored"] = with_invented_perplexities(
        folders["graded"], tmp_path / "scored", template.tokenizer
    )
    select = TypeAdapter(SelectConfig).validate_python(
        {
            "name": "demos", "table": "scored", "role": "demo", "count": 40, "where": "correct",
            "rule": {"name": "gaussian", "mean": 3.0, "std": 0.4, "bin_width": 0.5},
        }
    )  # fmt: skip
    selected = Select(select).run(context(folders["demos"], folders, seed=7))
    assert selected.num_rows == 40

    mix = MixConfig(name="mixed", tables=({"table": "demos"},), max_tokens=1024)
    mixed = Mix(mix).run(context(folders["mixed"], folders, model_folder=smollm2))
    tokens = read_table(folders["mixed"], Kind.TOKENS)
    demos = read_table(folders["demos"], Kind.SAMPLES)
    assert mixed.num_rows == len(tokens) == 40
    assert tokens["sample_id"].to_list() == demos["sample_id"].to_list()
    assert demos["problem_id"].n_unique() == 40
    assert not set(demos["family"]) & set(heldout)
    for row, demo in zip(tokens.to_dicts(), demos.to_dicts(), strict=True):
        response = template.decode(row["ids"][row["num_prompt_tokens"] :])
        assert response.strip() == demo["response"]
        prompt = template.prompt_ids([Message(**turn) for turn in demo["messages"]])
        assert row["ids"][: row["num_prompt_tokens"]] == list(prompt)
