r"""Problems from the package `reasoning-gym`, with worked solutions where it has them.

`gsm_symbolic` has 85 problem templates and one worked solution per template. The template's number
is the problem's `family` (taken from the data set's `task_indices`), so that splits can keep whole
templates apart. From the worked solution come up to six *renderings*, which serve as a teacher's
differing solutions; each is deterministic, says nothing the solution or the question does not say,
and ends in `\boxed{}`:

    equations   only the arithmetic, one equation a line
    worked      the solution as it is
    numbered    its lines as "Step 1: ..."
    checked     the solution, then every equation computed once more
    restated    the known facts and the question first, then the solution
    thorough    facts, numbered steps and check together

Equations are extracted from the text and *evaluated*; one that does not hold is not used, and a
solution whose last equation is not the answer gets no `equations` rendering. Other data sets of the
package give problems without responses. Not here: splits and tables (`ingest.py`).
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import reasoning_gym

from megatron_reason.curation._arithmetic import Equation, find_equations
from megatron_reason.curation._entries import Entry, GivenResponse
from megatron_reason.errors import DataError
from megatron_reason.schema.records import Message, Problem

STYLES = ("equations", "worked", "numbered", "checked", "restated", "thorough")

_MARKER = re.compile(r"^(?:\d+\.|[•\-*])\s+")
_OPENING = re.compile(r"^(?:Let's|Let us) solve this step by step", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<!Mr\.)(?<!Ms\.)(?<!Dr\.)(?<!Mrs\.)(?<=[.?!])\s+(?=[A-Z0-9])")
_INSTRUCTION = " Give the result as your final answer. Do not include units."


def read_reasoning_gym(
    name: str, *, size: int, seed: int, solutions_per_problem: int
) -> Iterator[Entry]:
    """Entries of the data set `name`.

    Args:
        name: data set of reasoning-gym, such as `gsm_symbolic`.
        size: number of problems.
        seed: seed of the generator and of the choice of renderings.
        solutions_per_problem: renderings per problem, as far as the problem has them.

    Raises:
        DataError: reasoning-gym has no such data set.
    """
    try:
        dataset: Any = reasoning_gym.create_dataset(name, size=size, seed=seed)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"reasoning_gym:{name}", f"cannot be made: {error}.",
            "Use a data set of reasoning-gym, such as reasoning_gym:gsm_symbolic.",
        ) from error  # fmt: skip
    templates: Sequence[int] | None = getattr(dataset, "task_indices", None)
    for index in range(size):
        item = dataset[index]
        question, answer = str(item["question"]), str(item["answer"])
        problem = Problem(
            messages=(Message("user", question),),
            answer=answer,
            source=f"reasoning_gym:{name}",
            family=f"{name}/{templates[index]:03d}" if templates is not None else "",
        )
        solution = item["metadata"].get("answer_cot")
        renderings = render_all(question, str(solution), answer) if solution else {}
        chosen = sorted(
            random.Random(f"{seed}/{index}").sample(
                sorted(renderings), min(solutions_per_problem, len(renderings))
            ),
            key=STYLES.index,
        )
        yield Entry(
            problem,
            tuple(GivenResponse(renderings[style], f"{name}/{style}") for style in chosen),
        )


def render_all(question: str, solution: str, answer: str) -> dict[str, str]:
    r"""Every rendering of a worked solution, by style.

    Args:
        question: the problem as it is asked.
        solution: worked solution, its last line `#### N`.
        answer: N.
    """
    lines = [line.strip() for line in solution.split("####")[0].splitlines() if line.strip()]
    steps = [_MARKER.sub("", line) for line in lines if not _OPENING.match(line)]
    equations = find_equations("\n".join(lines))
    facts = _facts(question)
    final = [f"The answer is $\\boxed{{{answer}}}$."]
    numbered = [f"Step {number}: {step}" for number, step in enumerate(steps, start=1)]
    found = {
        "worked": [*lines, *final],
        "numbered": [*numbered, *final],
        "restated": [*facts, "Now we work it out.", *lines, *final],
    }
    if equations:
        found["checked"] = [*lines, *_check(equations), *final]
        found["thorough"] = [*facts, *numbered, *_check(equations), *final]
        if equations[-1].value_text == answer:
            found["equations"] = [*(equation.text for equation in equations), *final]
    return {style: "\n".join(found[style]) for style in STYLES if style in found}


def _facts(question: str) -> list[str]:
    sentences = _SENTENCE.split(question.removesuffix(_INSTRUCTION).strip())
    known = [f"- {sentence}" for sentence in sentences if not sentence.endswith("?")]
    asked = [sentence for sentence in sentences if sentence.endswith("?")]
    return [
        *(["What we know:", *known] if known else []),
        *([f"What we are asked: {' '.join(asked)}"] if asked else []),
    ]


def _check(equations: Sequence[Equation]) -> list[str]:
    return [
        "Let me check each computation once more.",
        *(f"{equation.left} gives {equation.value_text}, which agrees." for equation in equations),
    ]
