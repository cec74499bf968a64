"""The report in a real browser: it opens, complains of nothing, loads nothing, and answers."""

import math
import shutil

import numpy as np
import polars as pl
import pytest

from megatron_reason.report.page import build_report
from tests.browser import Browser
from tests.report.runs import folder_of, write_eval

BOX = "(() => {const r = document.querySelector('%s').getBoundingClientRect();" \
      "return [r.left, r.top, r.width, r.height];})()"  # fmt: skip


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("browser") / "tiny")
    tokens = ["Each", " day", "</pre><script>throw 1</script>", "."]
    scores = {
        "problem_id": [f"p{i:02d}" for i in range(12)], "sample_index": [0] * 12,
        "tokens": [tokens] * 12, "logprobs": [[math.log(p) for p in (1.0, 0.5, 0.1, 0.9)]] * 12,
        "model": ["scorer"] * 12,
    }  # fmt: skip
    pl.DataFrame(scores).write_parquet(folder_of(run, "eval-sft") / "token_scores.parquet")
    return build_report(run)


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), 1100, 1400) as opened:
        opened.open(page.as_uri())
        yield opened
        assert opened.errors == []


def test_charts_stand_in_for_pictures(browser, page, tmp_path):
    num_charts = browser.run("document.querySelectorAll('.chart svg').length")
    assert num_charts == page.read_text().count("data-chart>")
    assert num_charts >= 7
    hidden = "getComputedStyle(document.querySelector('figure.drawn img')).display"
    assert browser.run(hidden) == "none"
    assert browser.run("document.querySelectorAll('.chart path').length") > num_charts
    assert browser.screenshot(tmp_path / "page.png").stat().st_size > 20_000


def test_hover_tells_the_values(browser):
    browser.run("document.querySelector('.chart').scrollIntoView()")
    left, top, width, height = browser.run(BOX % ".chart svg")
    browser.mouse("mouseMoved", left + 0.98 * width, top + 0.5 * height)
    told = browser.run("document.querySelector('.tip').innerText")
    assert told.startswith("k 4")
    assert "oxa_full: " in told
    browser.mouse("mouseMoved", 1, 1)


def test_dragging_zooms_and_the_button_goes_back(browser):
    chart = "document.querySelectorAll('.chart')[1]"
    browser.run(f"{chart}.id = 'curve'; {chart}.scrollIntoView()")
    left, top, width, height = browser.run(BOX % "#curve svg")
    texts = "[...document.querySelectorAll('#curve svg .label')].map(n => n.textContent).join()"
    before = browser.run(texts)
    y = top + 0.5 * height
    browser.mouse("mousePressed", left + 0.5 * width, y, 1)
    browser.mouse("mouseMoved", left + 0.7 * width, y, 1)
    browser.mouse("mouseReleased", left + 0.7 * width, y)
    zoomed = browser.run(texts)
    assert zoomed != before
    button = "[...document.querySelectorAll('#curve button')].at(-1)"
    assert browser.run(f"{button}.hidden") is False
    browser.run(f"{button}.click()")
    assert browser.run(texts) == before


def test_everything_that_can_be_clicked_is(browser):
    lines = "document.querySelectorAll('#curve svg path').length"
    before = browser.run(lines)
    browser.run("document.querySelector('#curve .legend button').click()")
    assert browser.run(lines) == before - 1
    browser.run("document.querySelector('figure:not(.drawn) img').click()")
    assert browser.run("document.querySelector('dialog').open") is True
    browser.run("document.querySelector('dialog').click()")
    assert browser.run("document.querySelector('dialog').open") is False
    browser.run("document.querySelector('[data-show=right]').click()")
    shown = "[...document.querySelectorAll('details[data-verdict]')].filter(d => !d.hidden)"
    assert browser.run(f"{shown}.every(d => d.dataset.verdict === 'right')") is True
    browser.run("document.querySelectorAll('button, summary').forEach(n => n.click())")
    browser.run("document.querySelector('[data-show=all]').click()")


def test_the_filter_of_one_set_of_problems_leaves_the_others_alone(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    write_eval(folder_of(run, "eval-base") / "aime24", "base", np.random.default_rng(0))
    shown = (
        "[...document.querySelectorAll('section')].map(s => "
        "[...s.querySelectorAll('details[data-verdict]')].filter(d => !d.hidden).length)"
    )
    with Browser(tmp_path / "profile", 1100, 1400) as opened:
        opened.open(build_report(run).as_uri())
        before = opened.run(shown)
        opened.run("document.querySelector('[data-show=right]').click()")
        first, second = opened.run(shown)
        assert opened.errors == []
    assert first < before[0]
    assert second == before[1]


def test_tokens_are_coloured_by_their_probability(browser):
    spans = "[...document.querySelectorAll('pre span[title]')]"
    assert browser.run(f"{spans}.slice(0, 4).map(s => s.title).join()") == (
        "p = 1.000,p = 0.500,p = 0.100,p = 0.900"
    )
    grounds = browser.run(f"{spans}.slice(0, 4).map(s => s.style.background)")
    assert grounds[0] == "transparent"
    assert grounds[2].startswith("rgba(213, 94, 0, 0.59")


def test_a_phone_shows_it_without_scrolling_sideways(browser, tmp_path):
    browser.resize(390, 844, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.screenshot(tmp_path / "phone.png").stat().st_size > 5_000
