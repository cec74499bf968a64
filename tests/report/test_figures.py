import polars as pl
import pytest

from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.report.drawing import legend_below, panel
from megatron_reason.report.figures import (
    accuracy_and_entropy,
    as_png,
    distributions,
    lengths_by_verdict,
    looks,
    pass_at_k_curves,
    training_curve,
)
from megatron_reason.report.run_data import read_run
from tests.report.runs import VARIANTS

MODELS = ["base", *VARIANTS]


@pytest.fixture(scope="module")
def data(finished_run):
    return read_run(finished_run)


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_models_look_different_and_alike_in_every_figure(data):
    look = looks(MODELS)
    assert len({(each.color, each.marker) for each in look.values()}) == len(MODELS)
    assert looks(["base", "sft"])["sft"] == look["sft"]
    many = looks([f"model{number}" for number in range(36)])
    assert len(set(many.values())) == 37, "no two alike"
    curve = training_curve(data.training, "train/ce", "ce", MODELS)
    passes = pass_at_k_curves({m.model: m.summary for m in data.measurements}, "set", MODELS)
    for name in VARIANTS:
        assert lines(curve)[name].get_color() == lines(passes)[name].get_color()


def test_curves_hold_the_logged_numbers(data):
    figure = training_curve(data.training, "train/ce", "ce", MODELS)
    for name in VARIANTS:
        line = lines(figure)[name]
        assert list(line.get_xdata()) == list(range(1, 11))
        assert list(line.get_ydata()) == data.training[name]["train/ce"].to_list()
    assert lines(training_curve(data.training, "train/ul", "ul", MODELS)).keys() == {"oxa_full"}
    assert training_curve(data.training, "train/absent", "?", MODELS) is None
    assert training_curve({}, "train/ce", "ce", MODELS) is None


def test_long_curves_are_running_means_over_the_raw_line():
    steps = list(range(1, 201))
    frame = pl.DataFrame({"step": steps, "x": [float(s + 10 * (s % 2)) for s in steps]})
    raw, mean = training_curve({"sft": frame}, "x", "x", MODELS).axes[0].lines
    assert list(raw.get_ydata()) == frame["x"].to_list()
    assert max(abs(mean.get_ydata() - (mean.get_xdata() + 4.5))) < 1e-9


def test_a_number_that_is_not_finite_leaves_the_running_mean_alone():
    values = [1.0] * 100
    values[50] = float("nan")
    frame = pl.DataFrame({"step": range(1, 101), "x": values})
    _, mean = training_curve({"sft": frame}, "x", "x", MODELS).axes[0].lines
    assert list(mean.get_ydata()) == pytest.approx([1.0] * 96)


def test_pass_at_k_bands_are_the_intervals(data):
    summaries = {m.model: m.summary for m in data.measurements}
    figure = pass_at_k_curves(summaries, "set", MODELS)
    for index, (name, summary) in enumerate(summaries.items()):
        estimates = [summary.metrics[f"pass@{k}"] for k in (1, 2, 3, 4)]
        line = lines(figure)[name]
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert line.get_markevery() == [0, 1, 3]
        assert list(line.get_ydata()) == pytest.approx([100 * e.value for e in estimates])
        corners = figure.axes[0].collections[index].get_paths()[0].vertices
        edges = {(k, 100 * y) for k, e in zip((1, 2, 3, 4), estimates, strict=True)
                 for y in (e.low, e.high)}  # fmt: skip
        for edge in edges:
            assert any(corner == pytest.approx(edge) for corner in corners.tolist())
    assert pass_at_k_curves({}, "set", MODELS) is None


def test_crosses_stand_at_entropy_and_accuracy(data):
    summaries = {m.model: m.summary for m in data.measurements}
    figure = accuracy_and_entropy(summaries, "set", MODELS)
    for name, summary in summaries.items():
        (x,), (y,) = lines(figure)[name].get_data()
        assert x == summary.metrics["mean_entropy"].value
        assert y == pytest.approx(100 * summary.metrics["pass@1"].value)
    assert figure.axes[0].get_xscale() == "linear"
    wide = {
        "base": {"mean_entropy": Estimate(0.5, 0.4, 0.6, 9), "pass@1": Estimate(0.0, 0.0, 0.1, 9)},
        "sft": {"mean_entropy": Estimate(0.1, 0.0, 0.2, 9), "pass@1": Estimate(0.5, 0.4, 0.6, 9)},
    }
    axes = accuracy_and_entropy(
        {name: EvalSummary(metrics, 9, 9, {}) for name, metrics in wide.items()}, "set", MODELS
    ).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] < 0, "the mark at 0 is whole"
    without = {"sft": type(summaries["sft"])({}, 1, 1, {})}
    assert accuracy_and_entropy(without, "set", MODELS) is None


def test_a_strip_for_the_candidates_and_for_each_selection(data):
    truths = [s for s in data.selections if s.role == "demo"]
    figure = distributions(truths, "ppl", MODELS)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0].startswith("180 candidates, median")
    assert titles[3].startswith("promote: 24 for oxa_mle, oxa_full, median")
    (aim, _), others = figure.axes[3].lines, figure.axes[1].lines
    assert list(aim.get_xdata()) == [5.5, 6.5, 7.5, 8.5, 9.5]
    assert list(aim.get_ydata()) == pytest.approx([n / 24 for n in (2, 6, 8, 6, 2)])
    assert len(others) == 1
    (mark,) = others
    assert mark.get_xdata()[0] == pytest.approx(truths[0].rows["ppl"].median())
    assert all(len(ax.lines) == 1 for ax in distributions(truths, "num_tokens", MODELS).axes)
    assert distributions([], "ppl", MODELS) is None


def test_equal_values_can_be_drawn(data):
    (selection,) = [s for s in data.selections if s.name == "promote"]
    flat = selection.rows.with_columns(ppl=pl.lit(2.0))
    same = type(selection)(**{**vars(selection), "rows": flat, "candidates": flat})
    assert as_png(distributions([same], "ppl", MODELS)).startswith(b"\x89PNG")


def test_boxes_say_how_many_answers_they_hold():
    answers = pl.DataFrame({"status": ["ok", "wrong", "wrong"], "num_tokens": [10, 20, 30]})
    only_wrong = answers.filter(pl.col("status") == "wrong")
    figure = lengths_by_verdict({"base": answers, "sft": only_wrong}, "set")
    notes = [text.get_text() for text in figure.axes[0].texts]
    assert notes == ["n = 1", "n = 2", "n = 2"]
    assert lengths_by_verdict({}, "set") is None


def test_pictures_are_the_same_bytes_each_time_and_leave_no_style_behind(data):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    one, two = (as_png(training_curve(data.training, "train/ce", "ce", MODELS)) for _ in range(2))
    assert one == two
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("words", "columns"),
    [("sft", 3), ("srft_seed1, demo tokens", 2), ("a model with a name that fills a line", 1)],
)
def test_a_legend_is_never_wider_than_its_figure(words, columns):
    figure, ax = panel("title", "x")
    for number in range(4):
        ax.plot([0, 1], [0, number], label=f"{words} {number}")
    legend_below(figure)
    (legend,) = figure.legends
    assert legend._ncols == columns
    assert legend.get_window_extent().width <= figure.bbox.width
