import pytest

from megatron_reason.schema.batch import Role, TokenizedSample
from tests import fixture_f


def test_role_masks_follow_the_sequences() -> None:
    batch = fixture_f.batch((Role.DEMO, Role.NEGATIVE, Role.DEMO, Role.NEGATIVE))
    expected = [True, True, False, False, False, True, False, False]
    assert batch.role_mask_T(Role.DEMO).tolist() == expected
    assert batch.role_mask_T(Role.NEGATIVE).tolist() == [not x for x in expected]
    assert not batch.role_mask_T(Role.ROLLOUT).any()
    assert (batch.num_tokens, batch.num_sequences) == (8, 4)


@pytest.mark.parametrize(("prompt", "targets"), [(3, 2), (1, 4), (0, 4)])
def test_targets_are_the_response_and_never_the_first_token(prompt: int, targets: int) -> None:
    sample = TokenizedSample("x", Role.DEMO, (1, 2, 3, 4, 5), prompt)
    assert sample.num_positions == 4
    assert sample.num_targets == targets
