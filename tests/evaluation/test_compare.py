import pytest

from megatron_reason.errors import DataError
from megatron_reason.evaluation.compare import compare_folders, find_evaluations, read_evaluation
from megatron_reason.evaluation.regrade import regrade
from megatron_reason.files import write_text
from tests.evaluation.stored import write_evaluation

BAD = [[False, False], [True, False], [False, False], [True, True]]
GOOD = [[True, True], [True, True], [False, True], [True, True]]


def test_paired_tests_of_all_metrics(tmp_path):
    a, b = write_evaluation(tmp_path / "a", BAD), write_evaluation(tmp_path / "b", GOOD)
    (found,) = compare_folders(str(a), str(b), force=False)
    assert found.tests.keys() == {"pass@1", "pass@2", "maj@2", "length", "truncated_fraction"}
    assert found.tests["pass@1"].value == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert found.tests["pass@2"].value == pytest.approx(2 / 4)
    assert found.tests["pass@2"].test == "McNemar, exact"
    assert found.tests["length"].value == 0
    assert found.tests["length"].p_value == 1
    assert found.differences == []
    assert compare_folders(str(b), str(a), force=False)[0].tests["pass@1"].value < 0


def test_unlike_cards_are_refused_unless_forced(tmp_path):
    a = write_evaluation(tmp_path / "a", BAD)
    b = write_evaluation(tmp_path / "b", GOOD, reward="plain", weights="other")
    with pytest.raises(DataError, match=r"(?s)reward 'math_verify' -> 'plain'.*--force"):
        compare_folders(str(a), str(b), force=False)
    (found,) = compare_folders(str(a), str(b), force=True)
    assert found.differences == ["reward 'math_verify' -> 'plain'"]
    assert found.tests["pass@1"].num_problems == 4


def test_forced_comparison_takes_the_common_problems(tmp_path):
    a = write_evaluation(tmp_path / "a", BAD)
    b = write_evaluation(tmp_path / "b", GOOD, first=2)
    (found,) = compare_folders(str(a), str(b), force=True)
    assert found.tests["pass@1"].num_problems == 2
    c = write_evaluation(tmp_path / "c", GOOD, first=10)
    with pytest.raises(DataError, match="no problem in common"):
        compare_folders(str(a), str(c), force=True)


def test_suites_are_compared_set_by_set_and_models_of_a_run_by_name(tmp_path):
    for model, right in (("base", BAD), ("sft", GOOD)):
        for name in ("aime24", "amc23"):
            write_evaluation(tmp_path / "run" / f"10-eval-{model}" / name, right)
    run = tmp_path / "run"
    found = compare_folders(f"{run}:base", f"{run}:sft", force=False)
    assert [one.problem_set for one in found] == ["aime24", "amc23", "mean of aime24, amc23"]
    mean = found[-1].tests
    assert mean.keys() == {"pass@1"}
    assert mean["pass@1"].value == pytest.approx(found[0].tests["pass@1"].value)
    assert mean["pass@1"].num_problems == 8
    with pytest.raises(DataError, match="Did you mean 'base'"):
        find_evaluations(f"{run}:bas")
    write_evaluation(tmp_path / "other" / "gsm8k", BAD)
    with pytest.raises(DataError, match="no set of problems in common"):
        compare_folders(str(run / "10-eval-base"), str(tmp_path / "other"), force=False)


def test_the_own_set_beside_benchmarks_has_the_same_name_in_every_model(tmp_path):
    for model in ("base", "sft"):
        folder = tmp_path / f"10-eval-{model}"
        write_evaluation(folder, BAD)
        write_evaluation(folder / "aime24", BAD)
        assert find_evaluations(str(folder)).keys() == {"", "aime24"}


def test_mixed_up_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no stored answers"):
        find_evaluations(str(tmp_path))
    a = write_evaluation(tmp_path / "a", BAD)
    write_text(a / "eval_card.json", "[]")
    with pytest.raises(DataError, match="no card of an evaluation"):
        read_evaluation(a)
    uneven = write_evaluation(tmp_path / "b", BAD)
    (uneven / "generations.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cut short or damaged"):
        read_evaluation(uneven)


@pytest.mark.parametrize(
    ("right", "first", "trouble"),
    [
        (BAD, 5, "the answers are to other problems than the card's"),
        ([*BAD, [True, True]], 0, "answers to 5 problems lie beside a card of 4"),
        ([[True] * 3] * 4, 0, "a problem has 3 answers, and the card says 2"),
    ],
)
def test_answers_of_another_evaluation_beside_a_card_are_refused(tmp_path, right, first, trouble):
    folder = write_evaluation(tmp_path / "a", BAD)
    other = write_evaluation(tmp_path / "b", right, first=first)
    (folder / "generations.parquet").write_bytes((other / "generations.parquet").read_bytes())
    both = rf"(?s)a/generations\.parquet and .*a/eval_card\.json.*{trouble}"
    with pytest.raises(DataError, match=both):
        read_evaluation(folder)
    with pytest.raises(DataError, match=both):
        regrade(folder, "plain", list)
    assert (folder / "summary.json").is_file()
