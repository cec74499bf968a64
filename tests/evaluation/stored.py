"""Stored evaluations, written by the package's own writers."""

from collections.abc import Sequence
from pathlib import Path

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.evaluation.card import EvalCard, hash_problems, write_card
from megatron_reason.evaluation.summary import summarise, write_summary
from megatron_reason.schema.records import EvalRecord, Finish, Message, Problem, Status
from megatron_reason.schema.tables import Kind, read_table, write_table


def write_evaluation(
    folder: Path, right: Sequence[Sequence[bool]], *, first: int = 0, **card
) -> Path:
    """An evaluation in which sample s of problem p is right as `right[p][s]` says.

    The answer to problem p is p; others say p + 1. `card` are fields of the card.
    """
    problems = [
        Problem((Message("user", f"What is {p}?"),), str(p), "sums", split="heldout")
        for p in range(first, first + len(right))
    ]
    records = [
        EvalRecord(
            problem_id=problem.problem_id, sample_index=index,
            problem=problem.messages[0].content, answer=problem.answer, family="",
            response=f"So \\boxed{{{int(problem.answer) + (not is_right)}}}",
            finish=Finish.STOP, num_tokens=10 + index, mean_entropy=None,
            status=Status.OK if is_right else Status.WRONG, score=float(is_right),
            extracted=str(int(problem.answer) + (not is_right)),
        )
        for problem, row in zip(problems, right, strict=True)
        for index, is_right in enumerate(row)
    ]  # fmt: skip
    write_table(folder, Kind.PROBLEMS, problems)
    write_table(folder, Kind.GENERATIONS, records)
    write_summary(folder, summarise(read_table(folder, Kind.GENERATIONS), seed=0))
    settings = {
        "versions": {}, "template_hash": "t",
        "sampling": SamplingConfig(samples_per_prompt=len(right[0])),
        "reward": "math_verify", "engine": {"kind": "vllm"},
        "problems_hash": hash_problems(problem.problem_id for problem in problems),
        "num_problems": len(right), "weights": folder.name,
    }  # fmt: skip
    write_card(folder, EvalCard.model_validate(settings | card))
    return folder
