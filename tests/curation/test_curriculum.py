"""LESE's curriculum: golden shares of equation 7, and tables in that order."""

import pytest

from megatron_reason.curation.curriculum import (
    Curriculum,
    CurriculumConfig,
    easy_counts,
    easy_share,
)
from megatron_reason.errors import DataError
from megatron_reason.files import read_json
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples


@pytest.mark.parametrize(
    ("group", "share"),
    [
        (0, 0.65), (1, 0.3052562658), (2, 0.2779428277), (10, 0.2058840390),
        (50, 0.1198691451), (100, 0.0778678123), (160, 0.0475103654), (319, 0.0),
    ],
)  # fmt: skip
def test_golden_shares(group, share):
    assert easy_share(group, 320) == pytest.approx(share, abs=1e-10)


def test_golden_totals():
    assert sum(100 * easy_share(group, 320) for group in range(320)) == pytest.approx(2101.447)
    assert sum(easy_counts(320, 100, peak=0.65, exponent=0.11)) == 2101


def curriculum(tmp_path, num_easy, num_hard, output="out", seed=3):
    easy = write_samples(tmp_path / "easy", [sample(n, answer="e") for n in range(num_easy)])
    rows = [sample(n, problem=1000 + n // 2, answer="h") for n in range(2 * num_hard)]
    hard = write_samples(tmp_path / "hard", rows)
    config = CurriculumConfig(
        name="mix", easy="easy", hard="hard", groups=4, group_size=10, exponent=1.0, seed=seed
    )
    where = context(tmp_path / output, {"easy": easy, "hard": hard})
    return Curriculum(config).run(where), read_table(tmp_path / output, Kind.SAMPLES)


def test_groups_come_in_order_and_are_mixed_inside(tmp_path):
    result, rows = curriculum(tmp_path, num_easy=12, num_hard=28)
    groups = [rows["answer"][10 * group : 10 * group + 10].to_list() for group in range(4)]
    assert [group.count("e") for group in groups] == [6, 4, 2, 0]
    assert groups[0] != sorted(groups[0])
    assert rows["problem_id"].n_unique() == len(rows) == result.num_rows == 40
    assert rows["role"].unique().to_list() == ["demo"]
    found = read_json(tmp_path / "out" / "curriculum.json")
    assert (found["easy"], found["hard"], found["easy_by_group"]) == (12, 28, [6, 4, 2, 0])
    assert curriculum(tmp_path, 12, 28, "again")[1].equals(rows)
    assert not curriculum(tmp_path, 12, 28, "other", seed=4)[1].equals(rows)


def test_shortage_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"takes 12 problems from 'easy', which has 11"):
        curriculum(tmp_path, num_easy=11, num_hard=28)
    # Twice as many samples, but no more problems.
    with pytest.raises(DataError, match=r"takes 28 problems from 'hard', which has 27 \(54"):
        curriculum(tmp_path, num_easy=12, num_hard=27)
