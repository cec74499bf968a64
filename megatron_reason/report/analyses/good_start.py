"""Is this checkpoint a good start for reinforcement learning? One page from two checkpoints.

The thesis of OXA (arXiv 2603.16206) as a tool: what a first stage is worth shows in what the second
can make of it, so beside accuracy it looks at what is left to explore: entropy, pass@k beyond
pass@1, how many different answers a model gives, how sure it is of its own errors, and how many
groups of eight samples would teach a method of group advantages anything. Not here: token scores
of wrong answers (`mreason logprobs --set where=wrong`).
"""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
from jinja2 import Environment, StrictUndefined

from megatron_reason.errors import DataError
from megatron_reason.evaluation.card import comparable
from megatron_reason.evaluation.compare import Evaluation, read_evaluation
from megatron_reason.evaluation.estimators import Estimate, bootstrap, mean_share, pass_at_k
from megatron_reason.evaluation.paired import PairedTest, paired_test
from megatron_reason.evaluation.summary import EvalSummary, read_summary
from megatron_reason.report.analysis import Page, Plot, analysis, slug
from megatron_reason.report.drawing import Figure, as_png, legend_below, looks, panel, styled
from megatron_reason.report.figures import pass_at_k_curves
from megatron_reason.report.places import TOKEN_SCORES, evaluations, token_scores
from megatron_reason.schema.records import Status

GROUP = 8
"""Samples of a group in the question how many groups are mixed."""
_SEED = 0
_TEMPLATE = "good_start.html.j2"
_SPECTRUM = ("0", "to 25", "to 50", "to 75", "<100", "100")


@dataclass(frozen=True)
class Finding:
    """One quantity of both checkpoints."""

    name: str
    meaning: str
    """What more of it is good for."""
    before: Estimate | None
    after: Estimate | None
    test: PairedTest | None
    """Of after - before, problem by problem, where it can be made."""
    more_is_better: bool = True
    digits: int = 3

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `unclear` or `not measured`."""
        if self.before is None or self.after is None:
            return "not measured"
        if self.test is not None:
            if not self.test.is_significant:
                return "unclear"
            rose = self.test.value > 0
        else:
            if self.before.low <= self.after.high and self.after.low <= self.before.high:
                return "unclear"
            rose = self.after.value > self.before.value
        return "better" if rose == self.more_is_better else "worse"

    def text(self, estimate: Estimate | None) -> str:
        """Value with its interval."""
        if estimate is None:
            return "not measured"
        value, low, high = (
            f"{number:.{self.digits}f}" for number in (estimate.value, estimate.low, estimate.high)
        )
        return f"{value} [{low}, {high}]"


def mixed_groups(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that `k` of the samples are neither all right nor all wrong (unbiased)."""
    some_right = pass_at_k(num_samples, num_correct, k)
    some_wrong = pass_at_k(num_samples, num_samples - num_correct, k)
    return some_right + some_wrong - 1


def distinct_answers(answers: Sequence[str | None], is_right: Sequence[bool], k: int) -> float:
    """Expected number of different answers among `k` of the samples (unbiased).

    All right answers are one; samples without an answer are none.
    """
    named = [
        "right" if right else f"wrong {answer}"
        for answer, right in zip(answers, is_right, strict=True)
        if right or answer
    ]
    counts = {name: named.count(name) for name in set(named)}
    return math.fsum(pass_at_k(len(answers), count, k) for count in counts.values())


def findings(
    before: Evaluation, after: Evaluation, summaries: Sequence[EvalSummary],
    scores: Sequence[pl.DataFrame] = (),
) -> list[Finding]:  # fmt: skip
    """All quantities, as they stand on the page.

    Args:
        before: one checkpoint's answers.
        after: the other's, to the same problems.
        summaries: of both evaluations.
        scores: token scores of wrong answers under each, or none. The same answers give the shift
            of their perplexity; each one's own answers give the perplexity of its own errors.

    Raises:
        DataError: no problem in common.
    """
    common = sorted(set(before.answers["problem_id"]) & set(after.answers["problem_id"]))
    if not common:
        raise DataError("good_start", "the two have no problem in common.", "Give one suite.")
    n = min(before.samples_per_problem, after.samples_per_problem)
    group = min(GROUP, n)
    mine, theirs = (_per_problem(one, common, n, group) for one in (before, after))
    wanted = {
        "pass@1": f"Share of right samples ({n} a problem).",
        f"pass@{n}": "Problems solved at least once: what reinforcement can build on.",
        f"mixed groups of {group}": "Neither all right nor all wrong: the others teach nothing.",
        f"different answers in {group}": "Alternatives that are tried at all.",
    }
    shares = [
        Finding(
            name,
            meaning,
            _mean(mine[name], before),
            _mean(theirs[name], after),
            paired_test(mine[name], theirs[name], seed=_SEED),
        )
        for name, meaning in wanted.items()
    ]
    first, second = (one.metrics.get("mean_entropy") for one in summaries)
    entropy = Finding(
        "entropy (nats per token)",
        "What is left to explore; reinforcement spends it.",
        first, second, None,
    )  # fmt: skip
    return [*shares, entropy, _errors(scores)]


@styled
def answer_spectrum(evaluations_of: dict[str, Evaluation], title: str) -> Figure | None:
    """Problems by how many of their samples are right: the middle is where groups are mixed."""
    figure, ax = panel(f"{title}: problems by share right", "share of right samples (%)")
    look, places = looks(list(evaluations_of)), np.arange(len(_SPECTRUM))
    for index, (label, one) in enumerate(evaluations_of.items()):
        shares = one.answers.group_by("problem_id").agg(
            share=(pl.col("status") == Status.OK).cast(pl.Float64).sum() / pl.len()
        )["share"]
        place = [_place(share) for share in shares]
        counts = np.bincount(place, minlength=len(_SPECTRUM))
        shift = (index - 0.5) * 0.4
        ax.bar(
            places + shift, 100 * counts / len(place), 0.38, label=label, color=look[label].color
        )
    ax.set_xticks(places, _SPECTRUM)
    ax.set_ylabel("% of problems")
    legend_below(figure)
    return figure


@analysis(
    "good_start",
    takes="two evaluations, then, if there are any, token scores of wrong answers under each",
)
def draw(inputs: Sequence[str]) -> Iterator[Plot | Page]:
    """Which of two checkpoints is the better start for reinforcement learning: one page."""
    scored = [word for word in inputs if (Path(word.rpartition("=")[2]) / TOKEN_SCORES).is_file()]
    places = evaluations([word for word in inputs if word not in scored])
    if any(len(folders) != 2 for folders in places.values()) or len(scored) not in (0, 2):
        raise DataError(
            "mreason analyse good_start",
            f"{len(inputs)} inputs: it compares two checkpoints.",
            "Give two evaluations and, behind them, none or two folders of token scores.",
        )
    scores = [pl.read_parquet(path) for path in token_scores(scored).values()]
    for problem_set, folders in places.items():
        read = {label: read_evaluation(folder) for label, folder in folders.items()}
        summaries = {label: read_summary(folder) for label, folder in folders.items()}
        name = "good_start" if len(places) == 1 else f"good_start_{slug(problem_set)}"
        yield from _drawn(name, problem_set, read, summaries, scores)


def _drawn(
    name: str, problem_set: str, read: dict[str, Evaluation], summaries: dict[str, EvalSummary],
    scores: Sequence[pl.DataFrame],
) -> Iterator[Plot | Page]:  # fmt: skip
    before, after = read.values()
    found = findings(before, after, [*summaries.values()], scores)
    plots = [
        Plot(
            f"{name}_pass_at_k",
            "A curve that goes on rising has answers in reach that training can make likely.",
            pass_at_k_curves(summaries, problem_set, [*summaries]),
            pl.DataFrame([_flat(finding) for finding in found]),
        ),
        Plot(
            f"{name}_spectrum",
            "Problems between the ends have mixed groups.",
            answer_spectrum(read, problem_set),
            pl.DataFrame([_flat(finding) for finding in found]),
        ),
    ]
    yield from plots
    pictures = [
        (plot.caption, base64.b64encode(as_png(plot.figure)).decode())
        for plot in plots
        if plot.figure is not None
    ]
    template = files("megatron_reason.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    html = environment.from_string(template).render(
        labels=[*read],
        problem_set=problem_set,
        findings=found,
        pictures=pictures,
        differences=comparable(before.card, after.card),
        num_problems=len(set(before.answers["problem_id"]) & set(after.answers["problem_id"])),
    )
    yield Page(name, html)


def _place(share: float) -> int:
    """Index of a share in `_SPECTRUM`."""
    return len(_SPECTRUM) - 1 if share == 1 else math.ceil(4 * share)


def _per_problem(
    one: Evaluation, common: Sequence[str], n: int, group: int
) -> dict[str, list[float]]:
    by_problem = {
        str(key[0]): rows for key, rows in one.answers.group_by("problem_id", maintain_order=True)
    }
    found: dict[str, list[float]] = {}
    for problem in common:
        rows = by_problem[problem]
        is_right = (rows["status"] == Status.OK).to_list()
        total, right = len(is_right), sum(is_right)
        values = {
            "pass@1": right / total,
            f"pass@{n}": pass_at_k(total, right, n),
            f"mixed groups of {group}": mixed_groups(total, right, group),
            f"different answers in {group}": distinct_answers(
                rows["extracted"].to_list(), is_right, group
            ),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found


def _mean(values: Sequence[float], one: Evaluation) -> Estimate:
    if max(values) <= 1:
        return mean_share(values, seed=_SEED, num_samples=len(one.answers))
    return bootstrap(values, [1] * len(values), seed=_SEED, num_samples=len(one.answers))


def _errors(scores: Sequence[pl.DataFrame]) -> Finding:
    """Perplexity of wrong answers."""
    if not scores:
        meaning = "How little it believes wrong answers; see `mreason logprobs --set where=wrong`."
        return Finding("perplexity of errors", meaning, None, None, None)
    before, after = scores
    keys = ["problem_id", "sample_index", "ids"]
    if before.select(keys).sort(keys[:2]).equals(after.select(keys).sort(keys[:2])):
        name = "perplexity of the same errors"
        mine, theirs = (_nll_by_problem(frame).sort("problem_id") for frame in scores)
        means = [(one["nll"] / one["tokens"]).to_list() for one in (mine, theirs)]
        test = paired_test(means[0], means[1], seed=_SEED)
    else:
        name, test = "perplexity of own errors", None
    meaning = "How little it believes wrong answers; certainty in errors is hard to unlearn."
    return Finding(name, meaning, _perplexity(before), _perplexity(after), test, digits=2)


def _nll_by_problem(scores: pl.DataFrame) -> pl.DataFrame:
    return scores.group_by("problem_id").agg(
        nll=-pl.col("logprobs").list.sum().sum(), tokens=pl.col("logprobs").list.len().sum()
    )


def _perplexity(scores: pl.DataFrame) -> Estimate:
    """Exp of the mean negative log-probability per token, with an interval over problems."""
    by_problem = _nll_by_problem(scores)
    mean = bootstrap(
        by_problem["nll"].to_list(), by_problem["tokens"].to_list(), seed=_SEED,
        num_samples=len(scores),
    )  # fmt: skip
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high), mean.n)


def _flat(finding: Finding) -> dict[str, object]:
    row: dict[str, object] = {"quantity": finding.name, "verdict": finding.verdict}
    for name, estimate in (("before", finding.before), ("after", finding.after)):
        values = asdict(estimate) if estimate else dict.fromkeys(("value", "low", "high", "n"))
        row |= {f"{name}_{key}": value for key, value in values.items()}
    row["p_value"] = finding.test.p_value if finding.test else None
    return row
