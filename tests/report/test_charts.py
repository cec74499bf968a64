import math

import polars as pl

from megatron_reason.report.charts import pass_chart, training_chart
from megatron_reason.report.run_data import read_run
from tests.report.runs import NUM_UPDATES, VARIANTS

MODELS = ["base", *VARIANTS]


def test_training_charts_hold_the_logged_numbers(finished_run):
    data = read_run(finished_run)
    chart = training_chart(data.training, "train/ce", "ce", MODELS)
    assert [one["name"] for one in chart.series] == list(VARIANTS)
    assert len({one["color"] for one in chart.series}) == len(VARIANTS)
    values = data.training["sft"]["train/ce"].to_list()
    assert chart.series[0]["points"] == [[i + 1, value] for i, value in enumerate(values)]
    assert len(values) == NUM_UPDATES
    assert training_chart(data.training, "train/absent", "?", MODELS) is None


def test_long_curves_are_thinned_and_keep_their_newest_value():
    frame = pl.DataFrame({"step": range(10_000), "x": [float(i) for i in range(10_000)]})
    frame = frame.with_columns(x=pl.when(pl.col("step") == 5).then(math.nan).otherwise("x"))
    (series,) = training_chart({"sft": frame}, "x", "x", MODELS).series
    assert len(series["points"]) <= 1500
    assert series["points"][-1] == [9999, 9999.0]
    assert all(math.isfinite(point[1]) for point in series["points"])


def test_pass_charts_have_bands_in_percent(finished_run):
    summaries = {m.model: m.summary for m in read_run(finished_run).measurements}
    chart = pass_chart(summaries, "set", MODELS)
    one = summaries["sft"].metrics["pass@2"]
    points = {s["name"]: s["points"] for s in chart.series}
    assert points["sft"][1] == [2, 100 * one.value, 100 * one.low, 100 * one.high]
    assert [point[0] for point in points["base"]] == [1, 2, 3, 4]
    assert pass_chart({}, "set", MODELS) is None
