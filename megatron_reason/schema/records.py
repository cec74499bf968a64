"""What flows between curation, training and evaluation, one frozen dataclass each. No torch.

Every record is a row of a table (`tables.py` has the column types). `Sample` grows along the way:
`grade` fills its verdict, `score` its perplexity, `select` its role.
"""

from dataclasses import dataclass
from enum import StrEnum

from megatron_reason.files import hash_text


class Origin(StrEnum):
    """Who wrote a response."""

    TEACHER = "teacher"
    """A stronger model or a worked solution."""
    POLICY = "policy"
    """The model being trained, or its distilled sibling."""
    REWRITTEN = "rewritten"
    """The model being trained, with the reference solution before it."""
    EXPERT = "expert"
    """The data set's own solution."""


class Status(StrEnum):
    """Why a verdict is what it is. A zero always has a reason."""

    OK = "ok"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    PARSE_ERROR = "parse_error"
    TIMEOUT = "timeout"
    CRASH = "crash"


class Finish(StrEnum):
    """How a response ended."""

    STOP = "stop"
    """The model emitted its stop token."""
    LENGTH = "length"
    """The token limit cut it."""
    GIVEN = "given"
    """It came with the data."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """A prompt with a known answer. The answer never enters the prompt."""

    messages: tuple[Message, ...]
    answer: str
    source: str
    """Data set the problem comes from."""
    family: str = ""
    """Template or category; held-out splits keep whole families apart."""
    split: str = "train"
    """`train` or `heldout`."""

    @property
    def problem_id(self) -> str:
        """Hash of the conversation and the answer."""
        turns = "\x1e".join(f"{turn.role}\x1f{turn.content}" for turn in self.messages)
        return hash_text(f"{turns}\x1d{self.answer}")


@dataclass(frozen=True)
class Verdict:
    """Outcome of checking one response."""

    score: float
    """1.0 for a right answer, 0.0 otherwise; combined rewards may use other values."""
    status: Status
    extracted: str = ""
    """The answer found in the response, as text."""
    gold: str = ""
    """The true answer it was compared with, as text."""
    elapsed_ms: float = 0.0
    """Time the check took in milliseconds."""
    format_score: float | None = None
    """Part of `score` that form alone earned; None where the reward has no such part."""


SCORE_FIELDS = ("nll_sum", "num_tokens", "ppl", "mean_entropy", "min_logprob", "scorer")
"""Fields of a `Sample` that `score` fills; void once the response is another."""


@dataclass(frozen=True)
class Sample:
    """One response to one problem."""

    sample_id: str
    problem_id: str
    messages: tuple[Message, ...]
    answer: str
    source: str
    family: str
    split: str
    response: str
    finish: Finish
    origin: Origin
    generator: str
    """Model or data set that wrote the response."""
    status: Status | None = None
    score: float | None = None
    extracted: str | None = None
    nll_sum: float | None = None
    """Sum over scored tokens of -log p, in nats."""
    num_tokens: int | None = None
    """Number of scored tokens."""
    ppl: float | None = None
    """exp(nll_sum / num_tokens), up to the rounding that `score` was asked for."""
    mean_entropy: float | None = None
    """Mean over scored tokens of the full-vocabulary entropy, in nats."""
    min_logprob: float | None = None
    """log p of the least likely scored token, in nats."""
    scorer: str | None = None
    """Model and settings behind the five fields above."""
    role: str | None = None
    """`demo` or `negative`, once selected."""

    @classmethod
    def of(
        cls, problem: Problem, response: str, *, finish: Finish, origin: Origin, generator: str,
        index: int = 0,
    ) -> "Sample":  # fmt: skip
        """Response number `index` of `generator` to `problem`."""
        return cls(
            sample_id=hash_text(f"{problem.problem_id}\x1f{generator}\x1f{index}\x1f{response}"),
            problem_id=problem.problem_id,
            messages=problem.messages,
            answer=problem.answer,
            source=problem.source,
            family=problem.family,
            split=problem.split,
            response=response,
            finish=finish,
            origin=origin,
            generator=generator,
        )


@dataclass(frozen=True)
class EvalRecord:
    """One graded answer of an evaluation, keyed by (problem, sample index)."""

    problem_id: str
    sample_index: int
    problem: str
    answer: str
    family: str
    response: str
    finish: Finish
    num_tokens: int
    """Tokens of the response."""
    mean_entropy: float | None
    """Mean full-vocabulary entropy over the response under the evaluated model, in nats."""
    status: Status
    score: float
    extracted: str
