import base64
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
import yaml

from megatron_reason.errors import DataError
from megatron_reason.report.examples import examples
from megatron_reason.report.page import build_comparison, build_report
from megatron_reason.report.run_data import read_run
from megatron_reason.schema.tables import Kind, read_table, write_table
from tests.report.runs import NUM_PROBLEMS, VARIANTS, folder_of, write_eval

VOID = {"meta", "img", "br", "hr", "link", "input"}
LOADING = ("src", "href", "srcset", "data", "action", "poster")


class Page(HTMLParser):
    """Tags with attributes, text by innermost tag; refuses tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.texts = []
        self._open = []
        self.feed(path.read_text("utf-8"))
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self, tag=None):
        return "\n".join(text for inside, text in self.texts if tag in (None, inside))


def rename(run, variant, name):
    """Give a variant another name in the run's plan."""
    path = run / "plan.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["variant"] = name if row["variant"] == variant else row["variant"]
    path.write_text(json.dumps(rows))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["variants"][name] = settings["variants"].pop(variant)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def pictures(page):
    return [img for img in page.all("img") if "src" in img]


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("page") / "tiny")


@pytest.fixture(scope="module")
def page(run):
    return Page(build_report(run))


def test_the_page_shows_tables_figures_answers_stages_and_settings(page):
    cells = page.text("td")
    for model in ("base", *VARIANTS):
        assert model in cells
    assert f"{NUM_PROBLEMS} x 4" in cells
    assert "perplexity is not finite 2" in cells
    assert "candidates 180" in cells
    assert "smollm2-135m" in page.text("pre")
    assert "python: '3.11'" in page.text("pre")
    assert page.text("b").count("oxa_full") >= 4
    assert "Each day she picks" in page.text("pre")
    assert "could not be read" not in page.text().lower()
    assert "Not done yet" not in page.text()


def test_pictures_stand_in_the_page_and_beside_it(run, page):
    embedded = [base64.b64decode(img["src"].partition("base64,")[2]) for img in pictures(page)]
    files = {path.name: path.read_bytes() for path in (run / "report").glob("*.png")}
    assert sorted(embedded) == sorted(files.values())
    assert all(png.startswith(b"\x89PNG") for png in embedded)
    expected = {"pass_at_k", "entropy", "lengths", "perplexity", "perplexity_2", "tokens",
                "tokens_2", "train_loss", "train_ce", "train_ul", "train_entropy_demo",
                "train_entropy_negative", "train_lr", "train_grad_norm"}  # fmt: skip
    assert files.keys() == {f"{name}.png" for name in expected}
    assert {path.stem for path in (run / "report").glob("*.csv")} == set(expected)
    assert all(img["alt"] for img in pictures(page))


def test_the_page_loads_nothing(page):
    loads = [attrs[name] for _, attrs in page.tags for name in LOADING if name in attrs]
    assert loads
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loads)
    assert not {"link", "iframe", "base", "object"} & {tag for tag, _ in page.tags}
    assert "fetch(" not in page.text("script")
    assert "XMLHttpRequest" not in page.text("script")
    assert "url(" not in page.text("style")
    assert "@import" not in page.text("style")


def test_what_models_write_stays_text(finished_run, tmp_path):
    evil = "</pre><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
    bad = shutil.copytree(finished_run, tmp_path / "<b>evil")
    write_eval(folder_of(bad, "eval-sft"), "sft", np.random.default_rng(0), response=evil,
               problem=evil, extracted=evil, answer=evil)  # fmt: skip
    data = read_run(bad)
    chosen = examples(data.on(data.problem_sets[0]), count=NUM_PROBLEMS)
    assert evil in [answer.response for example in chosen for answer in example.answers]
    rename(bad, "sft", "</script><img src=http://evil.example/y>")
    page = Page(build_report(bad))
    assert "b>evil" not in {tag for tag, _ in page.tags}
    # One script is ours; the others hold data.
    kinds = [attrs.get("type") for attrs in page.all("script")]
    assert kinds.count(None) == 1
    assert set(kinds) == {None, "application/json"}
    assert "alert(1)" not in page.text("script")
    charts = [json.loads(text) for tag, text in page.texts if tag == "script" and text[:1] == "{"]
    assert any("</script>" in one["name"] for chart in charts for one in chart["series"])
    assert all(img["src"].startswith("data:") for img in page.all("img") if "src" in img)
    assert page.text("h1") == "<b>evil"


def test_markdown_twin_has_the_same_numbers(run, page):
    lines = (run / "report" / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 1 + len(VARIANTS)
    value, low, high = (
        read_run(run).on("teacher (held out)")[0].summary.metrics["pass@1"].__dict__[name] * 100
        for name in ("value", "low", "high")
    )
    assert f"| {value:.1f} [{low:.1f}, {high:.1f}] |" in lines[2]
    assert f"{value:.1f}" in page.text("span")
    assert f"[{low:.1f}, {high:.1f}]" in page.text("small")


def test_a_second_report_is_the_same_and_drops_what_only_the_first_drew(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first
    metrics = [*run.glob("*/metrics.jsonl")]
    for path in metrics:
        path.unlink()
    build_report(run)
    assert metrics
    assert not list((run / "report").glob("train_*"))
    assert (run / "report" / "pass_at_k.csv").is_file()


def test_what_a_user_keeps_beside_the_page_stays(finished_run, tmp_path):
    for name in ("photo.png", "data.csv"):
        (tmp_path / name).write_bytes(b"mine")
    for _ in range(2):
        build_comparison([finished_run], tmp_path)
    assert (tmp_path / "photo.png").read_bytes() == (tmp_path / "data.csv").read_bytes() == b"mine"


def test_examples_begin_where_models_differ(run):
    data = read_run(run)
    (problem_set,) = data.problem_sets
    shown = examples(data.on(problem_set), count=NUM_PROBLEMS)
    spread = [abs(np.mean([a.is_right for a in example.answers]) - 0.5) for example in shown]
    assert len(shown) == NUM_PROBLEMS
    assert spread == sorted(spread)
    assert [a.model for a in shown[0].answers] == ["base", *VARIANTS]
    assert len(examples(data.on(problem_set), count=2)) == 2


def test_a_wrong_answer_with_a_reward_for_its_format_is_wrong(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    table = read_table(folder_of(run, "eval-sft"), Kind.GENERATIONS)
    rewarded = table.with_columns(score=pl.col("score") + 0.3)
    write_table(folder_of(run, "eval-sft"), Kind.GENERATIONS, rewarded)
    (measurement,) = [m for m in read_run(run).measurements if m.model == "sft"]
    shown = [one for example in examples([measurement]) for one in example.answers]
    assert {one.is_right for one in shown} == {True, False}
    assert all(one.is_right == (one.status == "ok") for one in shown)
    assert examples([measurement]) == examples([m for m in read_run(finished_run).measurements
                                                if m.model == "sft"])  # fmt: skip


def test_every_verdict_that_occurs_is_shown(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    table = read_table(folder_of(run, "eval-sft"), Kind.GENERATIONS)
    is_late = pl.col("sample_index") == 2
    late = table.with_columns(
        status=pl.when(is_late).then(pl.lit("timeout")).otherwise("status"),
        score=pl.when(is_late).then(0.0).otherwise("score"),
    )
    write_table(folder_of(run, "eval-sft"), Kind.GENERATIONS, late)
    data = read_run(run)
    *first, last = examples(data.on(data.problem_sets[0]), count=2)
    assert [(answer.model, answer.status) for answer in last.answers] == [("sft", "timeout")]
    statuses = {answer.status for example in first for answer in example.answers}
    assert statuses <= {"ok", "wrong", "no_answer"}
    everything = {a.status for e in [*first, last] for a in e.answers}
    assert everything == {"ok", "wrong", "no_answer", "timeout"}


def test_very_long_answers_lose_their_middle(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    write_eval(folder_of(run, "eval-base"), "base", np.random.default_rng(0),
               response="a" * 5000 + "b" * 5000)  # fmt: skip
    data = read_run(run)
    (response,) = [
        answer.response
        for example in examples(data.on(data.problem_sets[0]), count=NUM_PROBLEMS)
        for answer in example.answers
        if answer.response.startswith("aaa")
    ]
    assert len(response) < 4100
    assert "[... 6000 characters ...]" in response
    assert response.endswith("bbb")


def test_an_empty_run_gives_a_page_that_says_so(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    for path in run.iterdir():
        if path.name != "plan.json":
            path.unlink() if path.is_file() else [file.unlink() for file in path.rglob("*.*")]
    page = Page(build_report(run))
    text = page.text()
    assert pictures(page) == []
    for sentence in ("Not done yet", "No model has been evaluated yet", "No variant has been",
                     "No selection has been made", "There is no config.yaml"):  # fmt: skip
        assert sentence in text


def test_damaged_files_are_named_and_the_rest_is_shown(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (folder_of(run, "eval-sft") / "summary.json").write_text("{not right")
    (folder_of(run, "train-sft") / "metrics.jsonl").write_text("{not right\n")
    (folder_of(run, "promote") / "samples.parquet").write_bytes(b"not right")
    page = Page(build_report(run))
    troubles = [t for t in page.text("p").splitlines() if t.startswith("Could not be read")]
    assert len(troubles) == 3
    assert len(pictures(page)) == 14
    assert "oxa_full" in page.text("td")


def test_a_folder_without_a_plan_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"plan\.json"):
        build_report(tmp_path)
