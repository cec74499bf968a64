import json

import pytest

from megatron_reason.errors import ConfigError, DataError
from megatron_reason.evaluation.card import read_card
from megatron_reason.evaluation.regrade import evaluation_folders, grader_of, regrade
from megatron_reason.evaluation.summary import read_summary
from megatron_reason.pipeline.measure import regrade_all
from megatron_reason.schema.records import Status, Verdict
from megatron_reason.schema.tables import Kind, read_table
from tests.evaluation.stored import write_evaluation

RIGHT = [[True, False], [False, False]]


def nothing_is_right(pairs):
    return [Verdict(0.0, Status.WRONG, "x") for _ in pairs]


def test_verdicts_summary_card_and_disagreements_change_and_answers_stay(tmp_path):
    folder = write_evaluation(tmp_path / "a", RIGHT)
    before = read_table(folder, Kind.GENERATIONS)
    found = regrade(folder, "strict", nothing_is_right)
    after = read_table(folder, Kind.GENERATIONS)
    changed = {"status", "score", "extracted"}
    same = [name for name in before.columns if name not in changed]
    assert after.select(same).equals(before.select(same))
    assert after["status"].unique().to_list() == ["wrong"]
    assert found.num_changed == 1
    assert found.summary == read_summary(folder)
    assert found.summary.metrics["pass@1"].value == 0
    assert read_card(folder).reward == "strict"
    listed = json.loads((folder / "disagreements.json").read_text())
    assert (listed["only_plain"], listed["only_grader"]) == (1, 0)


def test_interrupted_grading_is_seen_and_done_again(tmp_path):
    folder = write_evaluation(tmp_path / "a", RIGHT)

    def dies(pairs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regrade(folder, "strict", dies)
    assert read_card(folder).reward == "strict (unfinished)"
    assert grader_of(folder) == "strict"
    assert not (folder / "summary.json").exists()
    assert regrade(folder, "strict", nothing_is_right).summary.num_samples == 4
    assert read_card(folder).reward == "strict"


def test_all_evaluations_below_a_folder_by_the_real_graders(tmp_path):
    for name in ("aime24", "amc23"):
        write_evaluation(tmp_path / name, RIGHT)
    assert list(evaluation_folders(tmp_path)) == ["aime24", "amc23"]
    found = regrade_all(tmp_path, "plain")
    assert {name: one.num_changed for name, one in found.items()} == {"aime24": 0, "amc23": 0}
    assert read_card(tmp_path / "amc23").reward == "plain"
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        regrade_all(tmp_path, "plane")
    with pytest.raises(DataError, match="no stored answers"):
        regrade_all(tmp_path / "aime24" / "none", None)
