from dataclasses import replace

import pytest
import torch

from megatron_reason.engine.frozen import Models, check_recorded, fill_frozen, whole_batch
from megatron_reason.engine.packing import pack
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.schema.batch import Role, TokenizedSample, TokenStats
from megatron_reason.schema.method import Frozen, TrainState, create_method
from megatron_reason.schema.topology import Rounding, Topology


def sample(name: str, num_tokens: int, **fields: object) -> TokenizedSample:
    fields = {"old_logprobs": tuple(-0.1 * i for i in range(num_tokens))} | fields
    return TokenizedSample(name, Role.ROLLOUT, tuple(range(num_tokens + 2)), 2, **fields)


def test_whole_batch_is_in_the_order_of_the_samples_however_they_are_packed() -> None:
    samples = [sample("a", 3), sample("b", 1), sample("c", 2)]
    members = [[2, 0], [1]]
    batches = [pack([samples[i] for i in m], rounding=Rounding(pack=4), indices=m) for m in members]
    stats = []
    for batch, own in zip(batches, members, strict=True):
        # The value tells which sample a token belongs to.
        names_T = torch.cat([torch.tensor(own), torch.tensor([-9])])[batch.segment_T].float()
        stats.append(TokenStats(names_T, 10 + names_T))
    whole = whole_batch(batches, stats, samples, Topology())
    assert whole.logprob_N.tolist() == [0, 0, 0, 1, 2, 2]
    assert whole.entropy_N.tolist() == [10, 10, 10, 11, 12, 12]
    assert whole.sequence_N.tolist() == [0, 0, 0, 1, 2, 2]
    assert whole.old_logprob_N is not None
    assert whole.old_logprob_N.tolist() == pytest.approx([0, -0.1, -0.2, 0, 0, -0.1])


@pytest.mark.parametrize("recorded", [None, (-0.5,)])
def test_a_rollout_without_its_log_probs_is_named(recorded: tuple[float, ...] | None) -> None:
    samples = [sample("fine", 2), sample("bad one", 2, old_logprobs=recorded)]
    with pytest.raises(DataError, match="bad one") as caught:
        check_recorded(frozenset({Frozen.OLD_LOGPROB}), samples)
    assert "for 2 response tokens" in str(caught.value)
    check_recorded(frozenset(), samples)


def test_demonstrations_need_no_recorded_log_probs() -> None:
    demo = replace(sample("demo", 2, old_logprobs=None), role=Role.DEMO)
    check_recorded(frozenset({Frozen.OLD_LOGPROB, Frozen.ROLLOUT_LOGPROB}), [demo])


def test_a_method_that_compares_needs_a_reference_model() -> None:
    models = Models(torch.nn.Linear(1, 1), None, Topology())
    method = create_method("sft_kl")
    with pytest.raises(ConfigError, match="reference model"):
        fill_frozen(models, method, [], [], TrainState(0, 1))
