from pathlib import Path

import pytest

from megatron_reason.evaluation.aside import is_aside, set_aside
from megatron_reason.evaluation.compare import compare_folders, find_evaluations, read_evaluation
from tests.evaluation.stored import write_evaluation

BAD, GOOD = [[False, False], [True, False]], [[True, True], [True, True]]


def test_answers_set_aside_are_no_evaluation_of_their_own(tmp_path):
    folder = write_evaluation(tmp_path / "a", BAD)
    for number in (1, 2):
        assert set_aside(folder) == folder / f"before-{number}"
        write_evaluation(folder, GOOD)
    assert not (folder / "before-1" / "summary.json").exists()
    assert find_evaluations(str(folder)).keys() == {""}
    assert read_evaluation(folder / "before-1").samples_per_problem == 2
    (found,) = compare_folders(str(folder / "before-1"), str(folder), force=False)
    assert found.tests["pass@1"].value == pytest.approx(0.75)


def test_only_folders_of_that_name_hold_what_was_set_aside():
    assert is_aside(Path("aime24/before-12"))
    assert not is_aside(Path("before-the-change/aime24"))
