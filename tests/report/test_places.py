import pytest

from megatron_reason.errors import DataError
from megatron_reason.report.places import evaluations, run_folders, token_scores, trainings
from tests.report.runs import VARIANTS, folder_of


def test_a_run_stands_for_all_its_models(finished_run):
    (found,) = evaluations([str(finished_run)]).values()
    assert list(found) == ["base", *VARIANTS]
    assert list(trainings([str(finished_run)])) == list(VARIANTS)


def test_places_and_labels(finished_run):
    sft = folder_of(finished_run, "train-sft")
    assert trainings([f"{finished_run}:sft"]) == {"sft": sft / "metrics.jsonl"}
    assert trainings([f"mine={sft}"]) == {"mine": sft / "metrics.jsonl"}
    assert list(trainings([str(sft), f"b={sft / 'metrics.jsonl'}"])) == ["sft", "b"]
    (found,) = evaluations([f"a={finished_run}:base", f"{finished_run}:sft"]).values()
    assert list(found) == ["a", "sft"]
    assert run_folders([str(finished_run)]) == {finished_run.name: finished_run}


def test_wrong_places_are_refused(finished_run, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'sft"):
        trainings([f"{finished_run}:sftt"])
    with pytest.raises(DataError, match="same label"):
        trainings([f"{finished_run}:sft", f"{finished_run}:sft"])
    with pytest.raises(DataError, match="no token_scores"):
        token_scores([str(tmp_path)])
    with pytest.raises(DataError, match="no stored answers"):
        evaluations([str(tmp_path)])
    with pytest.raises(DataError, match=r"no plan\.json"):
        run_folders([str(tmp_path)])
