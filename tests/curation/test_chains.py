"""Chains of sums: right solutions, different problems, refusal where there are too few."""

import pytest

from megatron_reason.curation.chains import Chains, ChainsConfig, question, solution
from megatron_reason.errors import DataError
from megatron_reason.rewards.lese import grade_finely
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context


def test_a_chain_is_worked_out_step_by_step():
    terms = (7, 5, -3, 8)
    assert question(terms) == "7+5-3+8="
    assert solution(terms) == (
        "<think>7+5=12\n12-3=9\n9+8=17\n</think><answer>\\boxed{17}</answer>"
    )


def test_a_chain_is_written_in_four_ways():
    terms = (7, 5, -3, 8)
    answer = "</think><answer>\\boxed{17}</answer>"
    assert solution(terms, "totals") == f"<think>12\n9\n17\n{answer}"
    assert solution(terms, "gathered") == f"<think>7+5=12\n12+8=20\n20-3=17\n{answer}"
    assert solution(terms, "answer") == f"<think>{answer}"


def test_ways_of_writing_have_their_shares(tmp_path):
    plain = ChainsConfig(name="plain", size=200, heldout=5)
    mixed = ChainsConfig(name="mixed", size=200, heldout=5, styles={"steps": 3, "totals": 1})
    for config in (plain, mixed):
        Chains(config).run(context(tmp_path / config.name))
    samples = read_table(tmp_path / "mixed", Kind.SAMPLES)
    assert 30 <= (samples["generator"] == "chains totals").sum() <= 70
    before = read_table(tmp_path / "plain", Kind.SAMPLES)
    assert samples["problem_id"].equals(before["problem_id"])
    for row in samples.head(8).iter_rows(named=True):
        assert grade_finely(row["response"], row["answer"]).score == pytest.approx(3.1)


def test_solutions_are_right_and_heldout_problems_are_apart(tmp_path):
    first = ChainsConfig(name="first", size=40, heldout=10, most_steps=3)
    Chains(first).run(context(tmp_path / "first"))
    again = ChainsConfig(name="again", size=40, most_steps=3, unlike="first")
    Chains(again).run(context(tmp_path / "again", inputs={"first": tmp_path / "first"}))
    problems = read_table(tmp_path / "first", Kind.PROBLEMS)
    samples = read_table(tmp_path / "first", Kind.SAMPLES)
    assert problems["split"].value_counts(sort=True).rows() == [("train", 40), ("heldout", 10)]
    assert set(samples["problem_id"]) == set(
        problems.filter(problems["split"] == "train")["problem_id"]
    )
    assert set(problems["family"]) == {"2 steps", "3 steps"}
    for row in samples.head(5).iter_rows(named=True):
        assert grade_finely(row["response"], row["answer"]).score == pytest.approx(3.1)
    others = read_table(tmp_path / "again", Kind.PROBLEMS)
    assert not set(others["problem_id"]) & set(problems["problem_id"])


def test_too_few_different_chains_are_refused(tmp_path):
    config = ChainsConfig(name="few", size=50, fewest_steps=1, most_steps=1, largest=2)
    with pytest.raises(DataError, match="50 different chains are wanted"):
        Chains(config).run(context(tmp_path))
