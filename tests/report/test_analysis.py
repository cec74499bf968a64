"""Every analysis through the registry, and the numbers of each."""

import json
import math

import polars as pl
import pytest

from megatron_reason.curation.shift import NUMBERS
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.evaluation.compare import read_evaluation
from megatron_reason.evaluation.summary import read_summary, summarise
from megatron_reason.files import write_json, write_text
from megatron_reason.report.analyses.accuracy import with_means
from megatron_reason.report.analyses.dynamics import alphas
from megatron_reason.report.analyses.entropy import events
from megatron_reason.report.analyses.gains import buckets, gains_by_base_count
from megatron_reason.report.analyses.good_start import (
    distinct_answers,
    findings,
    mixed_groups,
)
from megatron_reason.report.analyses.token_change import change_summary, token_changes
from megatron_reason.report.analyses.trajectories import distance, positions
from megatron_reason.report.analysis import ANALYSES, run_analysis, slug
from megatron_reason.schema.tables import Kind, read_table
from tests.evaluation.stored import write_evaluation

FIGURES = {
    "accuracy", "accuracy_entropy", "dynamics", "entropy", "gains", "good_start", "graders",
    "lengths", "pass_at_k", "rewriting", "selection", "token_change", "trajectories",
}  # fmt: skip


def scores(logprobs, *, ids=None, problems=None):
    """Token scores of one answer a problem."""
    rows = len(logprobs)
    return pl.DataFrame(
        {
            "problem_id": problems or [f"p{i}" for i in range(rows)],
            "sample_index": [0] * rows,
            "status": ["wrong"] * rows,
            "tokens": [[f" t{i}" for i in range(len(row))] for row in logprobs],
            "ids": ids or [list(range(len(row))) for row in logprobs],
            "logprobs": logprobs,
            "entropies": logprobs,
            "model": ["m"] * rows,
        }
    )


@pytest.fixture
def inputs(finished_run, tmp_path):
    """What each analysis is given."""
    for name, shift in (("before", 0.0), ("after", -0.2)):
        (tmp_path / name).mkdir()
        rows = [[math.log(0.5) + shift, math.log(0.9) + shift], [math.log(0.3) + shift]]
        scores(rows).write_parquet(tmp_path / name / "token_scores.parquet")
    columns = ("problems", "logprob_before", "logprob_after", "per_token_before", "per_token_after")
    means = dict.fromkeys(columns, 1.0)
    write_json(tmp_path / "shift" / NUMBERS, {"mean": {"rewritten": means, "all": means}})
    run = str(finished_run)
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    lines = [{"step": i, "time": i, "train/loss": 1 / (1 + i), "reward/mean": i / 9,
              "reward/format": 0.5, "eval/x/pass@1": 0.5} for i in range(9)]  # fmt: skip
    write_text(tmp_path / "rl" / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
    group = {"problem_id": "a", "coef": 0.25}
    write_text(tmp_path / "rl" / "rollouts" / "step_000001.jsonl", json.dumps(group) + "\n")
    return {name: [run] for name in FIGURES} | {
        "dynamics": [str(tmp_path / "rl")],
        "good_start": [f"{run}:base", f"{run}:oxa_full", before, after],
        "rewriting": [str(tmp_path / "shift")],
        "token_change": [before, after],
        "trajectories": [f"sft/{n}@{r}={tmp_path / n}" for n in ("before", "after") for r in "xy"],
    }


def test_the_room_has_its_analyses():
    assert set(ANALYSES.names()) == FIGURES


@pytest.mark.parametrize("name", ANALYSES.names())
def test_every_analysis_writes_pictures_and_the_numbers_behind_them(name, inputs, tmp_path):
    assert ANALYSES.get(name).__doc__.count("\n") == 0
    written = run_analysis(name, inputs[name], tmp_path / "out")
    pictures = [path for path in written if path.suffix == ".png"]
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        stored = json.loads(picture.with_suffix(".json").read_text())
        assert stored["rows"] or name == "graders"
        assert stored["caption"]
    assert sorted(written) == sorted((tmp_path / "out").iterdir())


def test_wrong_words_are_refused(finished_run, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'gains'"):
        run_analysis("gain", [str(finished_run)], tmp_path)
    with pytest.raises(DataError, match="compares two checkpoints"):
        run_analysis("good_start", [str(finished_run)], tmp_path)
    scores([[0.0]]).write_parquet(tmp_path / "token_scores.parquet")
    with pytest.raises(DataError, match="@base="):
        run_analysis("trajectories", [str(tmp_path)], tmp_path)
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        run_analysis("entropy", [str(tmp_path)], tmp_path)
    assert slug("teacher (held out)") == "teacher_held_out"


def test_buckets_are_the_papers_for_its_128_samples_and_cover_any_number():
    assert [b.label for b in buckets(128)] == ["0", "1 to 4", "5 to 16", "17 to 64", "65 to 128"]
    for n in range(1, 140):
        covered = [c for b in buckets(n) for c in range(b.low, b.high + 1)]
        assert covered == list(range(n + 1))


def test_gains_by_hand(tmp_path):
    base = write_evaluation(tmp_path / "base", [[False] * 4, [False] * 4, [True] * 4])
    better = write_evaluation(
        tmp_path / "better", [[True] * 4, [True] * 2 + [False] * 2, [True] * 3 + [False]]
    )
    found = gains_by_base_count(read_evaluation(base), {"b": read_evaluation(better)})
    assert found["base_right"].to_list() == ["0", "3 to 4"]
    assert found["gain"].to_list() == pytest.approx([0.75, -0.25])
    assert found["num_problems"].to_list() == [2, 1]


@pytest.mark.parametrize("n", range(1, 7))
def test_mixed_groups_and_distinct_answers_equal_enumeration(n):
    from itertools import combinations

    for c in range(n + 1):
        right = [i < c for i in range(n)]
        answers = [str(i // 2) for i in range(n)]
        for k in range(1, n + 1):
            draws = list(combinations(range(n), k))
            mixed = [len({right[i] for i in draw}) == 2 for draw in draws]
            assert mixed_groups(n, c, k) == pytest.approx(sum(mixed) / len(draws))
            names = [len({"r" if right[i] else answers[i] for i in draw}) for draw in draws]
            expected = sum(names) / len(draws)
            assert distinct_answers(answers, right, k) == pytest.approx(expected)


def test_a_start_is_judged_by_paired_tests_and_the_shift_of_errors(tmp_path):
    worse = [[False] * 8 for _ in range(12)]
    mixed = [[True, False] * 4 for _ in range(12)]
    folders = [write_evaluation(tmp_path / n, r) for n, r in (("a", worse), ("b", mixed))]
    read, summaries = [read_evaluation(f) for f in folders], [read_summary(f) for f in folders]
    before, after = scores([[-0.1, -0.3]] * 9), scores([[-1.1, -1.3]] * 9)
    found = {f.name: f for f in findings(*read, summaries, [before, after])}
    assert found["pass@1"].verdict == "better"
    assert found["mixed groups of 8"].after.value == 1
    assert (
        found["different answers in 8"].text(found["different answers in 8"].before)[:5] == "1.000"
    )
    assert found["entropy (nats per token)"].verdict == "not measured"
    errors = found["perplexity of the same errors"]
    assert errors.before.value == pytest.approx(math.exp(0.2))
    assert errors.after.value == pytest.approx(math.exp(1.2))
    assert errors.verdict == "better"
    others = scores([[-1.0]] * 2, problems=["x", "y"])
    assert "perplexity of own errors" in {
        f.name for f in findings(*read, summaries, [before, others])
    }


def test_a_start_judged_on_several_benchmarks_has_a_page_of_each(tmp_path):
    for model, right in (("a", [[False, True]] * 3), ("b", [[True, True]] * 3)):
        for first, benchmark in enumerate(("aime24", "amc23")):
            write_evaluation(tmp_path / model / benchmark, right, first=first)
    places = [str(tmp_path / name) for name in "ab"]
    written = run_analysis("good_start", places, tmp_path / "out")
    assert len(set(written)) == len(written) == 10
    for benchmark in ("aime24", "amc23"):
        page = (tmp_path / "out" / f"good_start_{benchmark}.html").read_text()
        assert benchmark in page


def test_token_changes_by_hand():
    before, after = (
        scores([[math.log(0.5), math.log(0.9)]]),
        scores([[math.log(0.6), math.log(0.1)]]),
    )
    changes = token_changes(before, after)
    assert changes["delta"].to_list() == pytest.approx([0.1, -0.8])
    summary = change_summary(changes)
    assert summary["mean_abs_delta"] == pytest.approx(0.45)
    assert summary["unchanged_fraction"] == 0
    with pytest.raises(DataError, match="different tokens"):
        token_changes(before, scores([[0.0, 0.0]], ids=[[7, 8]]))
    with pytest.raises(DataError, match="no answer in common"):
        token_changes(before, scores([[0.0]], problems=["other"]))


def test_distances_are_means_of_means():
    found = distance(scores([[math.log(0.5), math.log(0.25)], [0.0]]))
    assert found["distance"] == pytest.approx((0.625 + 0) / 2)
    assert found["nll"] == pytest.approx(-math.log(0.125) / 4)
    rows = positions({"sft/1@x": scores([[0.0]]), "base@x": scores([[0.0]])})
    assert rows["family"].to_list() == ["sft", "base"]


def test_events_are_restarts_and_warnings():
    rows = [{"step": i, "time": 2.0 * i + (500 if i > 6 else 0), "train/entropy_demo": 1.0}
            for i in range(1, 12)]  # fmt: skip
    rows += [{"step": 12, "time": 526.0, "train/entropy_demo": 0.1}]
    assert [(e.step, e.is_warning) for e in events(rows)] == [(7, False), (12, True)]


def test_alphas_are_those_of_the_stored_groups(tmp_path):
    lines = [{"problem_id": p, "coef": c} for p, c in (("a", 0.2), ("a", 0.2), ("b", 0.9))]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"problem_id": "c", "co'
    (tmp_path / "step_000003.jsonl").write_text(text)
    assert alphas(tmp_path).to_dict(as_series=False) == {"step": [3, 3], "alpha": [0.2, 0.9]}


def test_the_mean_of_accuracies_is_over_benchmarks_and_models_that_have_them_all(tmp_path):
    half, all_right = [[True, False]] * 4, [[True] * 2] * 4
    evals = {
        "a": {"held out": half, "aime24": all_right, "amc23": half},
        "b": {"held out": half, "aime24": half},
    }
    found = {}
    for model, sets in evals.items():
        for name, right in sets.items():
            folder = write_evaluation(tmp_path / model / name, right)
            summary = summarise(read_table(folder, Kind.GENERATIONS), seed=1)
            found.setdefault(name, {})[model] = summary
    means = with_means(found)["mean"]
    assert list(means) == ["a"]
    assert means["a"].metrics["pass@1"].value == pytest.approx(0.75)
    alone = {name: models for name, models in found.items() if name != "amc23"}
    assert with_means(alone) == alone, "one benchmark has no mean"
