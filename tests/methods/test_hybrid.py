from megatron_reason.methods._hybrid import bonus_losses, bonus_terms
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f
from tests.loss import run


def test_without_a_bonus_there_is_no_term() -> None:
    config = create_method("hpt", entropy_bonus=0.0).config
    assert bonus_terms(config) == []
    batch = fixture_f.batch((Role.DEMO,) * 4)
    with_bonus, _, means = run(create_method("hpt"), batch)
    without, _, _ = run(create_method("hpt", entropy_bonus=0.0), batch)
    assert abs(without - 0.001 * means["train/entropy_bonus"] - with_bonus) < 1e-15


def test_the_bonus_is_the_entropy_itself() -> None:
    from megatron_reason.schema.batch import TokenStats

    stats = TokenStats(fixture_f.LOGPROB, fixture_f.ENTROPY)
    assert bonus_losses(stats, create_method("hpt").config)["entropy_bonus"] is fixture_f.ENTROPY
