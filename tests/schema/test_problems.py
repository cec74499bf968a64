"""Problems by split, from both kinds of table that hold them."""

import pytest

from megatron_reason.errors import DataError
from megatron_reason.schema.problems import heldout_problems, train_problems
from megatron_reason.schema.records import Finish, Message, Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, write_table


def problem(text: str, split: str) -> Problem:
    return Problem((Message("user", text),), "1", "test", "family", split)


def test_train_and_heldout_are_told_apart(tmp_path):
    problems = [problem("a", "train"), problem("b", "heldout"), problem("c", "train")]
    write_table(tmp_path, Kind.PROBLEMS, problems)
    assert train_problems(tmp_path) == [problems[0], problems[2]]
    assert heldout_problems(tmp_path)["problem_id"].to_list() == [problems[1].problem_id]


def test_a_table_of_samples_gives_each_problem_once_in_its_order(tmp_path):
    problems = [problem("b", "train"), problem("a", "train")]
    rows = [
        Sample.of(p, f"answer {n}", finish=Finish.GIVEN, origin=Origin.TEACHER, generator="x")
        for n, p in enumerate([*problems, problems[0]])
    ]
    write_table(tmp_path, Kind.SAMPLES, rows)
    assert train_problems(tmp_path) == problems


def test_an_empty_split_is_refused(tmp_path):
    write_table(tmp_path, Kind.PROBLEMS, [problem("a", "heldout")])
    with pytest.raises(DataError, match="none of the train split"):
        train_problems(tmp_path)
    write_table(tmp_path, Kind.PROBLEMS, [problem("a", "train")])
    with pytest.raises(DataError, match="none of its 1 problems is held out"):
        heldout_problems(tmp_path)
