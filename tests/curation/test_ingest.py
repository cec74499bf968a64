"""Ingest: every file shape, every kind of bad row, splits by template, teacher renderings."""

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from megatron_reason.curation._reasoning_gym import STYLES, read_reasoning_gym
from megatron_reason.curation.ingest import Ingest, IngestConfig
from megatron_reason.errors import DataError
from megatron_reason.rewards.math_verify import grade_math
from megatron_reason.rewards.numeric import grade_number
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context

TRAIN = Path(__file__).parents[2] / ".." / "shared" / "data" / "train"


def ingest(folder, **config):
    config = IngestConfig(name="teacher", **config)
    result = Ingest(config).run(context(folder))
    return result, read_table(folder, Kind.PROBLEMS), read_table(folder, Kind.SAMPLES)


def ingest_rows(folder, rows, suffix="jsonl", **config):
    source = folder / f"source.{suffix}"
    if suffix == "jsonl":
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        source.write_text("\n".join(lines), encoding="utf-8")
    elif suffix == "json":
        source.write_text(json.dumps(rows), encoding="utf-8")
    else:
        pl.DataFrame(rows).write_parquet(source)
    return ingest(folder / "out", source=str(source), **config)


USER = {"role": "user", "content": "1+1?"}
ASSISTANT = {"role": "assistant", "content": "It is 2."}
SHAPES = {
    "messages": {"messages": [USER, ASSISTANT], "answer": "2"},
    "alpaca": {"instruction": "1+1?", "input": "", "output": "It is 2.", "answer": 2},
    "prompt": {"prompt": "1+1?", "completion": "It is 2.", "answer": "2"},
    "verl": {
        "data_source": "sums", "prompt": [USER], "target": [ASSISTANT],
        "reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": 0},
    },
    "problem": {"id": "a", "problem": "1+1?", "answer": "2", "solution": "It is 2."},
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reads_every_shape(tmp_path, shape, suffix):
    result, problems, samples = ingest_rows(tmp_path, [SHAPES[shape]], suffix)
    assert result.num_rows == len(problems) == len(samples) == 1
    row = samples.to_dicts()[0]
    assert row["messages"] == [USER]
    assert (row["answer"], row["response"]) == ("2", "It is 2.")
    assert (row["origin"], row["finish"], row["split"]) == ("teacher", "given", "train")
    assert row["source"] == ("sums" if shape == "verl" else "source")


def test_reads_gsm8k_answers(tmp_path):
    row = {"question": "1+1?", "answer": "It is 1,002.\n#### 1,002"}
    _, _, samples = ingest_rows(tmp_path, [row, {"question": "x?", "answer": "no mark"}])
    assert samples["answer"].to_list() == ["1002"]
    assert samples["response"].to_list() == [row["answer"]]


def test_bad_rows_are_set_aside_with_their_reasons(tmp_path):
    good = {"id": "1", "problem": "1+1?", "answer": "2", "solution": "2"}
    rows = [
        good,
        good | {"problem": "other?"},
        good | {"id": "2"},
        good | {"id": "3", "problem": "  "},
        good | {"id": "4", "problem": "a?", "answer": " "},
        good | {"id": "5", "problem": "b?", "solution": " \n"},
        {"id": "6", "problem": "c?"},
        {"id": "7", "problem": "b?", "answer": "2"},
        "{not json",
        "[1, 2]",
    ]
    result, problems, samples = ingest_rows(tmp_path, rows)
    refused = {
        "duplicate id": 1,
        "duplicate response": 1,
        "empty problem": 1,
        "empty answer": 1,
        "empty response": 1,
        "missing columns": 1,
        "duplicate problem": 1,
        "not a JSON object": 2,
    }
    assert {reason: result.counts[reason] for reason in refused} == refused
    quarantine = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")
    assert dict(Counter(quarantine["reason"])) == refused
    assert (len(problems), len(samples)) == (2, 1)


def test_unknown_columns_name_what_was_found_and_expected(tmp_path):
    with pytest.raises(DataError) as caught:
        ingest_rows(tmp_path, [{"text": "x", "label": "y"}])
    assert "label, text" in caught.value.what
    assert "alpaca: instruction, output" in caught.value.what


def test_unusable_sources_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b")
    (tmp_path / "rows.json").write_text("{}")
    (tmp_path / "rows.parquet").write_text("nonsense")
    for source, message in {
        "rows.csv": "no known format",
        "rows.json": "list of objects",
        "rows.parquet": "cannot be read as parquet",
        "none.jsonl": "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            ingest(tmp_path / "out", source=str(tmp_path / source))
    with pytest.raises(DataError, match="gsm_symbolic"):
        ingest(tmp_path / "out", source="reasoning_gym:gsm_symbolik")
    with pytest.raises(DataError, match="no usable row"):
        ingest_rows(tmp_path, [{"problem": "", "answer": "2"}])
    with pytest.raises(DataError, match="heldout_fraction"):
        ingest_rows(tmp_path, [SHAPES["problem"]], heldout_fraction=0.5)


def test_marked_splits_are_kept_and_their_responses_are_not(tmp_path):
    rows = [
        SHAPES["problem"] | {"id": str(i), "problem": f"{i}?", "split": split}
        for i, split in enumerate(["train", "test", "validation", "all"])
    ]
    _, problems, samples = ingest_rows(tmp_path, rows)
    assert problems["split"].to_list() == ["train", "heldout", "heldout", "train"]
    assert len(samples) == 2


def test_most_responses_per_problem(tmp_path):
    rows = [SHAPES["prompt"] | {"completion": f"It is 2, {i}."} for i in range(5)]
    result, problems, samples = ingest_rows(tmp_path, rows, solutions_per_problem=3)
    assert (len(problems), len(samples)) == (1, 3)
    assert result.counts["beyond_solutions_per_problem"] == 2


def test_no_template_is_on_both_sides_of_the_split(tmp_path):
    arguments = {"source": "reasoning_gym:gsm_symbolic", "size": 400, "heldout_fraction": 0.2}
    result, problems, samples = ingest(tmp_path / "a", seed=3, **arguments)
    families = {
        split: set(problems.filter(pl.col("split") == split)["family"])
        for split in ("train", "heldout")
    }
    assert len(families["train"] | families["heldout"]) > 80
    assert len(families["heldout"]) == 17
    assert not families["train"] & families["heldout"]
    assert set(samples["family"]) == families["train"]
    assert result.counts["problems_train"] + result.counts["problems_heldout"] == len(problems)
    _, again, samples_again = ingest(tmp_path / "b", seed=3, **arguments)
    assert again.equals(problems)
    assert samples_again.equals(samples)
    _, other, _ = ingest(tmp_path / "c", seed=4, **arguments)
    assert set(other["problem_id"]) != set(problems["problem_id"])


def test_renderings_are_right_distinct_and_differ_in_length():
    entries = list(
        read_reasoning_gym("gsm_symbolic", size=300, seed=5, solutions_per_problem=len(STYLES))
    )
    lengths = {style: [] for style in STYLES}
    for entry in entries:
        texts = [response.text for response in entry.responses]
        assert len(set(texts)) == len(texts) >= 3
        for response in entry.responses:
            lengths[response.generator.split("/")[1]].append(len(response.text))
            assert "####" not in response.text
            verdict = grade_math(response.text, entry.problem.answer)
            assert verdict.status is Status.OK, response.text
            assert grade_number(response.text, entry.problem.answer).status is Status.OK
    means = [sum(lengths[style]) / len(lengths[style]) for style in STYLES]
    assert means == sorted(means)
    assert means[-1] > 5 * means[0]


def test_other_data_sets_give_problems_without_responses(tmp_path):
    result, problems, samples = ingest(
        tmp_path, source="reasoning_gym:chain_sum", size=20, heldout_fraction=0.25
    )
    assert len(samples) == result.num_rows == 0
    assert Counter(problems["split"]) == {"train": 15, "heldout": 5}


@pytest.mark.skipif(not TRAIN.is_dir(), reason="needs the data sets in ../shared/data/train")
def test_reads_whole_data_sets_whose_text_holds_line_separators(tmp_path):
    result, problems, samples = ingest(tmp_path, source=str(TRAIN / "gsm8k_train.jsonl"))
    assert len(problems) == len(samples) == result.num_rows == 7473
    assert set(result.counts.values()) == {7473, 0}
