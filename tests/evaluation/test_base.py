import json
from pathlib import Path

import pytest

from megatron_reason.errors import DataError
from megatron_reason.evaluation.base import BENCHMARKS, Benchmark
from megatron_reason.rewards.base import REWARDS
from megatron_reason.schema.tables import Kind, read_table, write_table


def write_lines(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"problem": f"What is {i} + 1?\u2028", "answer": str(i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_the_room_has_its_benchmarks():
    assert {"aime24", "aime25", "gsm8k", "math500"} <= set(BENCHMARKS.names())


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_every_benchmark_reads_its_file_and_asserts_its_count(name: str, tmp_path: Path):
    entry = BENCHMARKS.get(name)
    assert entry.name == name
    REWARDS.get(entry.reward)
    for count in entry.count:
        write_lines(tmp_path / "below" / entry.source, count)
        problems = entry.problems(tmp_path)
        write_table(tmp_path, Kind.PROBLEMS, problems)
        stored = read_table(tmp_path, Kind.PROBLEMS, filled=("problem_id", "answer"))
        assert stored.height == count
        assert stored["source"].unique().to_list() == [name]
        assert stored["answer"][1] == "2"
        assert stored["messages"][1][0] == {"role": "user", "content": "What is 1 + 1?\u2028"}
        write_lines(tmp_path / "below" / entry.source, count - 1)
        with pytest.raises(DataError, match=f"{count - 1}"):
            entry.problems(tmp_path)


def test_bad_files_are_refused(tmp_path: Path):
    entry = Benchmark(name="three", source="three.jsonl", count=(3,), samples_per_prompt=1)
    with pytest.raises(DataError, match=r"0 files called three\.jsonl"):
        entry.problems(tmp_path)
    path = tmp_path / "three.jsonl"
    for line, message in (
        ("{", "three.jsonl:1"),
        ('{"problem": "p"}', "KeyError\\('answer'\\)"),
        ('{"problem": "p", "answer": " "}', "empty"),
        ('{"problem": "p", "answer": "1"}\n' * 3, "more than once"),
    ):
        path.write_text(line)
        with pytest.raises(DataError, match=message):
            entry.problems(tmp_path)
