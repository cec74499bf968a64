import json
from pathlib import Path

import polars as pl
import pytest

from megatron_reason.errors import ConfigError, DataError
from megatron_reason.evaluation.base import BENCHMARKS, Benchmark, find_benchmark
from megatron_reason.rewards.base import REWARDS
from megatron_reason.schema.tables import Kind, read_table, write_table
from tests.hub import hub_of, use_hub

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "benchmarks"
"""Where real benchmark files may lie; they are no part of the repository."""
OPTIONS = "\n\nA) 1\nB) 2\nC) 3\nD) 4"


def write_lines(path: Path, count: int, *, options: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "problem": f"What is {i} + 1?\u2028{options}",
            "answer": "B" if options else str(i + 1),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_the_room_has_its_benchmarks():
    assert set(BENCHMARKS.names()) == {
        "aime24", "aime25", "amc23", "amc83", "arc_c", "brumo25", "cmimc25", "gpqa_diamond",
        "gsm8k", "hmmt25", "math500", "minerva", "mmlu_pro", "mmlu_stem", "olympiadbench",
    }  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_every_benchmark_reads_its_file_and_asserts_its_count(name: str, tmp_path: Path):
    entry = BENCHMARKS.get(name)
    options = OPTIONS if entry.is_choice else ""
    assert entry.name == name
    REWARDS.get(entry.reward)
    for count in entry.count:
        write_lines(tmp_path / "below" / entry.source, count, options=options)
        problems = entry.problems(tmp_path)
        write_table(tmp_path, Kind.PROBLEMS, problems)
        stored = read_table(tmp_path, Kind.PROBLEMS, filled=("problem_id", "answer"))
        assert stored.height == count
        assert stored["source"].unique().to_list() == [name]
        assert stored["answer"][1] == ("B" if options else "2")
        text = f"What is 1 + 1?\u2028{options}" if not options else f"What is 1 + 1?{options}"
        assert stored["messages"][1][0] == {"role": "user", "content": text}
        wrong = min(entry.count) - 1
        write_lines(tmp_path / "below" / entry.source, wrong, options=options)
        with pytest.raises(DataError, match=f"has {wrong}"):
            entry.problems(tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_the_real_files_are_read(name: str):
    entry = BENCHMARKS.get(name)
    if not (REAL / entry.source).is_file():
        pytest.skip(f"needs ../shared/data/benchmarks/{entry.source}")
    problems = entry.problems(REAL, choice_seed=0)
    assert len(problems) + entry.repeats in entry.count
    if entry.is_choice:
        shares = problems["answer"].value_counts(normalize=True)["proportion"].to_list()
        assert max(shares) < 0.3


def test_options_are_shuffled_by_seed_and_the_answer_follows(tmp_path: Path):
    path = tmp_path / "gpqa_diamond.jsonl"
    write_lines(path, 198, options=OPTIONS)
    entry = BENCHMARKS.get("gpqa_diamond")
    one, again, other = (entry.problems(tmp_path, choice_seed=seed) for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one["answer"].equals(other["answer"])
    for row in one.to_dicts():
        text = row["messages"][0]["content"]
        assert f"{row['answer']}) 2" in text.splitlines()


def test_a_file_of_your_own_is_a_benchmark(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": 2}\n\n{"question": "2 + 2?", "answer": 4}\n')
    entry = find_benchmark(str(path))
    problems = entry.problems(tmp_path / "elsewhere")
    assert (entry.name, problems["answer"].to_list()) == ("mine", ["2", "4"])
    pl.DataFrame({"problem": ["1 + 1?"], "answer": ["2"]}).write_parquet(tmp_path / "m.parquet")
    assert len(find_benchmark(str(tmp_path / "m.parquet")).problems(tmp_path)) == 1
    with pytest.raises(DataError, match="0 files"):
        find_benchmark(str(tmp_path / "none.jsonl")).problems(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'minerva'"):
        find_benchmark("minervas")


def test_a_benchmark_of_the_hub(tmp_path: Path, monkeypatch):
    rows = [{"problem": f"{n} + 1?", "answer": f"{n + 1}"} for n in range(3)]
    pl.DataFrame(rows).write_parquet(tmp_path / "test.parquet")
    files = {
        "owner/set/README.md": b"# A card",
        "owner/set/test.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "owner/set/data/test.parquet": (tmp_path / "test.parquet").read_bytes(),
    }
    with hub_of(files) as address:
        use_hub(address, monkeypatch)
        for path in ("test.jsonl", "data/test.parquet", "data/*.parquet"):
            entry = find_benchmark(f"hf://datasets/owner/set/{path}")
            assert entry.problems(tmp_path)["answer"].to_list() == ["1", "2", "3"]
        with pytest.raises(DataError, match="stands for 2 files"):
            Benchmark(name="all", source="hf://datasets/owner/set/**").problems(tmp_path)
        with pytest.raises(DataError, match="the hub does not give this"):
            find_benchmark("hf://datasets/owner/set/dev.jsonl").problems(tmp_path)


def test_a_number_that_answers_a_multiple_choice_is_the_index_of_an_option(tmp_path: Path):
    row = {"question": "Which?", "choices": ["1", "2", "3", "4"], "answer": 1}
    (tmp_path / "hub.jsonl").write_text(json.dumps(row))
    entry = Benchmark(name="hub", source="hub.jsonl", is_choice=True)
    assert entry.problems(tmp_path)["answer"].to_list() == ["B"]


def test_bad_files_are_refused(tmp_path: Path):
    entry = Benchmark(name="three", source="three.jsonl", count=(3,))
    with pytest.raises(DataError, match=r"0 files called three\.jsonl"):
        entry.problems(tmp_path)
    path = tmp_path / "three.jsonl"
    for line, message in (
        ("{", "three.jsonl:1"),
        ("", "three is empty"),
        ("[1]", "list instead of an object"),
        ('{"problem": "p", "answer": ["1"]}', "answer is list, not text or a number"),
        ('{"problem": null, "answer": "1"}', "problem is NoneType"),
        ('{"problem": "p"}', "KeyError\\('answer'\\)"),
        ('{"problem": "p", "answer": " "}', "empty"),
        ('{"problem": "p", "answer": "1"}\n' * 3, "more than once"),
    ):
        path.write_text(line)
        with pytest.raises(DataError, match=message):
            entry.problems(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no UTF-8"):
        entry.problems(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        find_benchmark(str(tmp_path / "bad.parquet")).problems(tmp_path)
