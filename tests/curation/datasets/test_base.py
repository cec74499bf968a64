"""Every public data set on a small file of its shape, and on the real one where it is at hand."""

import json
from pathlib import Path

import polars as pl
import pytest

from megatron_reason.curation.datasets.base import DATASETS, open_source
from megatron_reason.curation.ingest import Ingest, IngestConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context
from tests.hub import hub_of, use_hub

TRAIN = Path(__file__).parents[3] / ".." / "shared" / "data" / "train"
TRACES = [f"<think>{n}</think>\\boxed{{2}}" for n in "abc"]
USER = [{"role": "user", "content": "1+1?"}]

# Rows of each set; the questions, answers and numbers of responses read; reasons of the refused.
SMALL = {
    "acereason_sft": (
        [
            {"category": "math", "source": "numina", "input": "1+1?", "output": TRACES[0]},
            {"category": "math", "source": "numina", "input": "1+1?", "output": TRACES[1]},
            {"category": "code", "source": "taco", "input": "Sort.", "output": "def f(): ..."},
        ],
        [("1+1?", "", 2)],
        {"not mathematics": 1},
    ),
    "oxa_acereason_math": (
        [
            {"uuid": "a", "query": "1+1?", "gt": "2", "DeepSeek-R1_Response_List": TRACES},
            {"uuid": "b", "query": "2+2?", "gt": " ", "DeepSeek-R1_Response_List": TRACES},
            {"uuid": "a", "query": "3+3?", "gt": "6", "DeepSeek-R1_Response_List": []},
        ],
        [("1+1?", "2", 3)],
        {"empty answer": 1, "duplicate id": 1},
    ),
    "openr1_math_46k_8192": (
        [
            {
                "data_source": "openr1",
                "prompt": [{"role": "system", "content": "Think."}, *USER],
                "target": [{"role": "assistant", "content": TRACES[0]}],
                "reward_model": {"ground_truth": "2", "style": "rule"},
            }
        ],
        [("1+1?", "2", 1)],
        {},
    ),
    "openr1_math_220k": (
        [
            {
                "uuid": f"{n}", "problem": f"{n}+1?", "answer": f"{n + 1}", "source": "olympiads",
                "problem_type": "Algebra", "generations": TRACES[:2],
                "is_reasoning_complete": [True, complete],
                "correctness_math_verify": [first, True],
            }
            for n, (first, complete) in enumerate([(True, True), (False, True), (False, False)])
        ],
        [("0+1?", "1", 2), ("1+1?", "2", 1)],
        {"no verified generation": 1},
    ),
    "numina_math_cot": (
        [
            {"source": "olympiads", "problem": "1+1?", "solution": r"It is $\boxed{\frac{4}{2}}$."},
            {"source": "proofs", "problem": "Prove it.", "solution": "Obvious."},
            {"source": "proofs", "problem": "Prove that.", "solution": r"So \boxed{ }."},
        ],
        [("1+1?", r"\frac{4}{2}", 1)],
        {"no boxed answer in the solution": 1, "empty answer": 1},
    ),
    "deepscaler_preview": (
        [
            {"problem": "1+1?", "answer": "2", "solution": ""},
            {"problem": "2+2?", "answer": "4", "solution": "It is 4."},
            {"problem": "3+3?", "answer": "", "solution": ""},
        ],
        [("1+1?", "2", 0), ("2+2?", "4", 1)],
        {"empty answer": 1},
    ),
    "gsm8k": (
        [
            {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 1,002"},
            {"question": "2+2?", "answer": "4"},
        ],
        [("1+1?", "1002", 1)],
        {"no '####' before the answer": 1},
    ),
    "math": (
        [{"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": r"\boxed{2}"}],
        [("1+1?", "2", 1)],
        {},
    ),
}  # fmt: skip


def test_every_data_set_is_tried_here():
    assert DATASETS.names() == sorted(SMALL)
    for name, known in DATASETS:
        assert known.name == name
        assert known.hub.startswith("hf://datasets/")


@pytest.mark.parametrize("name", SMALL)
def test_reads_rows_of_its_shape(tmp_path, name):
    rows, expected, refused = SMALL[name]
    folder = tmp_path / "copy" / "data"
    folder.mkdir(parents=True)
    pl.DataFrame(rows[:1]).write_parquet(folder / "train-0.parquet")
    pl.DataFrame(rows[1:] or rows).write_parquet(folder / "train-1.parquet")
    config = IngestConfig(name="teacher", source=str(tmp_path / "copy"), dataset=name)
    result = Ingest(config).run(context(tmp_path / "out"))
    problems = read_table(tmp_path / "out", Kind.PROBLEMS)
    samples = read_table(tmp_path / "out", Kind.SAMPLES)
    found = [
        (row["messages"][-1]["content"], row["answer"],
         samples.filter(pl.col("problem_id") == row["problem_id"]).height)
        for row in problems.to_dicts()
    ]  # fmt: skip
    assert found == expected
    for reason, number in refused.items():
        assert result.counts[reason] == number
    if refused:
        places = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")["place"]
        assert all(place.startswith("train-1.parquet row") for place in places)


# Where the files lie on the hub (for OXA's and LUFFY's set: where they may lie).
ON_HUB = {
    "acereason_sft": "nvidia/AceReason-1.1-SFT/sft_data.parquet/data-00000-of-00187.arrow",
    "oxa_acereason_math": "takagi97/OXA-AceReason-1.1-Math/train.parquet",
    "openr1_math_46k_8192": "Elliott/Openr1-Math-46k-8192/openr1.parquet",
    "openr1_math_220k": "open-r1/OpenR1-Math-220k/data/train-00000-of-00010.parquet",
    "numina_math_cot": "AI-MO/NuminaMath-CoT/data/train-00000-of-00005.parquet",
    "deepscaler_preview": "agentica-org/DeepScaleR-Preview-Dataset/deepscaler.json",
    "gsm8k": "openai/gsm8k/main/train-00000-of-00001.parquet",
    "math": "EleutherAI/hendrycks_math/algebra/train-00000-of-00001.parquet",
}


@pytest.mark.parametrize("name", SMALL)
def test_reads_it_from_the_hub(tmp_path, monkeypatch, name):
    rows, expected, _ = SMALL[name]
    path = ON_HUB[name]
    local = tmp_path / "file"
    if path.endswith(".json"):
        local.write_text(json.dumps(rows))
    elif path.endswith(".arrow"):
        pl.DataFrame(rows).write_ipc_stream(local)
    else:
        pl.DataFrame(rows).write_parquet(local)
    owner, repository, *_ = path.split("/")
    files = {f"{owner}/{repository}/{card}": b"" for card in ("README.md", "state.json")}
    files |= {path.replace("train-", "test-"): b"no table", path: local.read_bytes()}
    with hub_of(files) as address:
        use_hub(address, monkeypatch)
        config = IngestConfig(name="teacher", source="hub", dataset=name)
        Ingest(config).run(context(tmp_path / "out"))
    problems = read_table(tmp_path / "out", Kind.PROBLEMS)
    found = [(row["messages"][-1]["content"], row["answer"]) for row in problems.to_dicts()]
    assert found == [(problem, answer) for problem, answer, _ in expected]


OPENR1 = SMALL["openr1_math_220k"][0][0] | {"uuid": "b", "problem": "5+5?"}
OXA = SMALL["oxa_acereason_math"][0][0] | {"uuid": "b", "query": "5+5?"}


@pytest.mark.parametrize(
    ("name", "good", "column", "value", "detail"),
    [
        ("oxa_acereason_math", OXA, "DeepSeek-R1_Response_List", ["a", None], "number 1: None"),
        ("oxa_acereason_math", OXA, "DeepSeek-R1_Response_List", json.dumps(TRACES), "'[\""),
        ("oxa_acereason_math", OXA, "DeepSeek-R1_Response_List", 5, "5"),
        ("openr1_math_220k", OPENR1, "generations", [None, TRACES[0]], "number 0: None"),
        ("openr1_math_220k", OPENR1, "generations", json.dumps(TRACES), "'[\""),
        ("openr1_math_220k", OPENR1, "correctness_math_verify", ["True", "False"], "'True'"),
        ("openr1_math_220k", OPENR1, "correctness_math_verify", True, "True"),
        ("openr1_math_220k", OPENR1, "is_reasoning_complete", 1, "1"),
    ],
)
def test_a_malformed_list_is_set_aside(tmp_path, name, good, column, value, detail):
    source = tmp_path / "copy.jsonl"
    rows = [SMALL[name][0][0], good | {column: value}]
    source.write_text("\n".join(map(json.dumps, rows)))
    config = IngestConfig(name="teacher", source=str(source), dataset=name)
    result = Ingest(config).run(context(tmp_path / "out"))
    assert result.counts["malformed list"] == result.counts["problems_train"] == 1
    (aside,) = pl.read_parquet(tmp_path / "out" / "quarantine.parquet").to_dicts()
    assert f"column '{column}'" in aside["detail"]
    assert detail in aside["detail"]
    assert aside["place"] == "copy.jsonl:2"


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="'gsm8k'"):
        open_source("x", "gsm8")
    pl.DataFrame({"problem": ["a"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="gsm8k: question, answer"):
        open_source(str(tmp_path / "a.parquet"), "gsm8k")
    with pytest.raises(DataError, match="no such file"):
        open_source(str(tmp_path / "nowhere"), "gsm8k")


@pytest.mark.skipif(not TRAIN.is_dir(), reason="needs the data sets in ../shared/data/train")
def test_the_real_deepscaler_prompts_contradict_themselves(tmp_path):
    config = IngestConfig(
        name="rl", source=str(TRAIN / "deepscaler_10k.jsonl"), dataset="deepscaler_preview"
    )
    counts = Ingest(config).run(context(tmp_path)).counts
    assert counts["contradictory answer"] == 9
    assert counts["problems_train"] + counts["duplicate problem"] + 9 == 9_998
