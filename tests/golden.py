"""Golden losses and gradients of every method: one case per number, all on fixture F.

`check` runs a case on the whole vocabulary or on one shard of it. Tokens are rows in the order
a1 a2 b1 b2 b3 c1 d1 d2 of the sequences that a case keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from megatron_reason.schema.batch import PackedBatch, Role
from megatron_reason.schema.method import METHODS, Method, TrainState, create_method
from tests import fixture_f
from tests.loss import FIRST, credited, run

DEMO, NEGATIVE, ROLLOUT = Role.DEMO, Role.NEGATIVE, Role.ROLLOUT
ALL = (0, 1, 2, 3)
STD_ADVANTAGES = (0.8660239038, -0.8660239038, -0.8660239038, 0.8660239038)


def published(name: str, **settings: Any) -> Method[Any]:
    """The method to the letter: without weights for another program's rounding, unless asked."""
    has_weights = "tis" in METHODS.get(name).config_class.model_fields
    return create_method(name, **(({"tis": "none"} if has_weights else {}) | settings))


@dataclass(frozen=True)
class Case:
    """A method on some sequences of fixture F, and what must come out."""

    name: str
    method: Method[Any]
    batch: PackedBatch
    loss: float
    gradient: Mapping[int, Sequence[float]] = field(default_factory=dict[int, Sequence[float]])
    means: Mapping[str, float] = field(default_factory=dict[str, float])
    keep: tuple[int, ...] = ALL
    state: TrainState = FIRST


def check(case: Case, rank: int = 0, world_size: int = 1) -> None:
    """Compare loss, gradients and means of terms with the golden numbers, to 1e-8."""
    columns = -(-5 // world_size)
    group = torch.distributed.group.WORLD if world_size > 1 else None
    loss, gradient, means = run(
        case.method, case.batch, state=case.state, keep=case.keep,
        columns=(rank * columns, columns, world_size), group=group,
    )  # fmt: skip
    assert loss == pytest.approx(case.loss, abs=1e-8)
    for name, value in case.means.items():
        assert means[name] == pytest.approx(value, abs=1e-8), name
    for row, golden in case.gradient.items():
        whole = torch.tensor(golden, dtype=torch.float64)
        padded = torch.nn.functional.pad(whole, (0, columns * world_size - 5))
        mine = padded[rank * columns : (rank + 1) * columns]
        torch.testing.assert_close(gradient[row], mine, atol=1.5e-9, rtol=1e-8)


def demos(keep: tuple[int, ...] = ALL) -> PackedBatch:
    """Sequences of `keep` as demonstrations."""
    return fixture_f.batch((DEMO,) * len(keep), keep)


def rollouts(advantages: Sequence[float]) -> PackedBatch:
    """All four sequences as rollouts."""
    return fixture_f.batch((ROLLOUT,) * 4, advantages=advantages)


def _likelihood() -> list[Case]:
    mle = published("sft", mean="token_mean")
    mixed = fixture_f.batch((DEMO, NEGATIVE, DEMO, NEGATIVE))
    kl_a1 = [-0.0592120400, 0.0280856118, 0.0098558902, 0.0034505845, 0.0178199535]
    k3_a1 = [-0.0577917557, 0.0273927632, 0.0100772344, 0.0037072074, 0.0166145507]
    return [
        Case("sft token mean", mle, demos(), 1.1213323412, {
            0: [-0.0546223460, 0.0258904920, 0.0095245797, 0.0035038971, 0.0157033772],
            2: [-0.0001320300, 0.0000418885, 0.0000154099, 0.0000690625, 0.0000056690]}),
        Case("sft mean of means", published("sft"), demos(), 1.0592171645, {
            2: [-0.0000880200, 0.0000279257, 0.0000102733, 0.0000460417, 0.0000037793]}),
        Case("sft sums", published("sft", mean="seq_mean_token_sum"), demos(), 2.2426646823),
        Case("sft chunks of 2", published("sft", preset="data_rewriting", chunk=2), demos(),
             1.0479017036),
        Case("oxa", published("oxa"), mixed, 1.148145309405, {
            0: [-0.1092446920, 0.0517809840, 0.0190491595, 0.0070077941, 0.0314067544],
            2: [1.6649062668e-05, -5.2821702896e-06, -1.9432018543e-06, -8.7088265120e-06,
                -7.1486401225e-07]}, {"train/ce": 1.1479713148, "train/ul": 1.7399462526}),
        Case("oxa alpha 1", published("oxa", suppress_weight=1.0), mixed, 2.8879175674),
        Case("dft token mean", published("dft"), demos(), 0.2425276963, {
            0: [-0.0307535405, 0.0145768967, 0.0053625406, 0.0019727684, 0.0088413348],
            1: [0.0003661567, 0.0002712556, 0.0066545856, -0.0073659237, 0.0000739258]},
            {"train/nll": 1.1213323412}),
        Case("dft mean of means", published("dft", mean="seq_mean_token_mean"), demos(),
             0.2582661776),
        Case("dft chunks of 2", published("dft", preset="released", chunk=2), demos(),
             0.2484663922),
        Case("sft_kl full", published("sft_kl"), demos(), 1.1278402303, {0: kl_a1}),
        Case("sft_kl k1", published("sft_kl", kl_kind="k1"), demos(), 1.1281008554),
        Case("sft_kl k2", published("sft_kl", kl_kind="k2"), demos(), 1.1258417281),
        Case("sft_kl k3", published("sft_kl", kl_kind="k3"), demos(), 1.1256376791,
             {0: k3_a1}),
    ]  # fmt: skip


def _grpo() -> list[Case]:
    batch = rollouts(STD_ADVANTAGES)
    zero = [0.0] * 5
    b3 = [-0.0214472224, -0.0214472224, 0.0857888895, -0.0214472224, -0.0214472224]
    fourth = {"max_response_length": 4}
    centred = rollouts((0.5, -0.5, -0.5, 0.5))
    return [
        Case("grpo", published("grpo"), batch, -0.0243836456, {
            0: [-0.0439108903, 0.0208133600, 0.0076568073, 0.0028167820, 0.0126239410],
            1: zero, 3: zero, 4: b3,
            6: [0.0141693851, -0.0637851242, 0.0042677368, 0.0348510637, 0.0104969387], 7: zero}),
        Case("grpo mean of means", published("grpo", mean="seq_mean_token_mean"), batch,
             -0.0084857150),
        Case("grpo sums", published("grpo", mean="seq_mean_token_sum"), batch, -0.0487672911),
        # By hand: ((-1.8431284335 + 2.4175491427) / 5 + (0.9330331588 - 1.7025230324) / 3) / 2.
        Case("grpo chunks of 2", published("grpo", mean="chunk_mean_token_mean", chunk=2),
             batch, -0.0708062413),
        Case("grpo normed", published("grpo", mean="seq_mean_token_sum_norm", **fourth), batch,
             -0.0121918228),
        Case("dapo", published("grpo", clip_high=0.28), batch, -0.0417041236),
        Case("dapo mean of means",
             published("grpo", clip_high=0.28, mean="seq_mean_token_mean"), batch,
             -0.0258061931),
        Case("grpo with k3", published("grpo", kl_weight=0.001), batch, -0.024362118878,
             means={"policy/kl_ref": 0.0215266897}),
        Case("dr.grpo",
             published("grpo", divide_by_std=False, mean="seq_mean_token_sum_norm", **fourth),
             centred, -0.0070389644),
        Case("grpo with tis", published("grpo", tis="token"), batch, -0.2813791587),
        Case("gspo", published("grpo", ratio="sequence", clip_high=0.28,
                                   mean="seq_mean_token_mean"), batch, -0.1112597242, {
            0: [-0.0566068181, 0.0268311136, 0.0098706151, 0.0036311964, 0.0162738930], 6: zero}),
    ]  # fmt: skip


def _srft() -> list[Case]:
    credit = credited(published("srft"), (1, 0, 1), demo_reward=1)
    golden = {
        "token": (0.1117679990, 0.2963279018, -0.9828062359),
        "sequence": (0.1480780529, 0.3385514404, -0.9042726434),
        "subset": (0.1480780529, 0.3479096233, -0.8949144604),
        "batch": (0.1573808054, 0.3438199581, -0.8897013732),
    }
    gradients = {
        0: [-0.0362650200, 0.0171892875, 0.0063235855, 0.0023263171, 0.0104258299],
        6: [0.0253141261, -0.1139544637, 0.0076244683, 0.0622627034, 0.0187531659],
        4: [-0.0666666667, -0.0666666667, 0.2666666667, -0.0666666667, -0.0666666667],
    }
    batch = _with_demo(credit.advantages, credit.demo_advantage)
    cases = [
        Case(f"srft {scope}", published("srft", entropy_scope=scope), batch, total,
             gradients if scope == "sequence" else {},
             {"train/sft": sft, "train/rl_demo": -0.2685089528, "train/correct": positive,
              "train/wrong": -1.1223931839})
        for scope, (sft, positive, total) in golden.items()
    ]  # fmt: skip
    third_party = published(
        "srft", divide_by_std=False, demo_shape="luffy", rl_mean="sum_over_constant",
        max_response_length=4,
    )  # fmt: skip
    credit = credited(third_party, (1, 0, 1), demo_reward=1)
    emulated = _with_demo(credit.advantages, credit.demo_advantage)
    a1 = [-0.0271987650, 0.0128919657, 0.0047426891, 0.0017447378, 0.0078193724]
    # Three reinforcement terms of -0.5392778871 - 0.1480780529 in all, an eighth of them, less
    # 0.001 of the mean entropy of the eight tokens.
    preset = published("srft", preset="third_party", max_response_length=4)
    eighth = 0.1480780529 + (-0.5392778871 - 0.1480780529) / 8 - 0.001 * 0.9556979625
    return [
        *cases,
        Case("srft third party", third_party, emulated, -0.5392778871, {0: a1}),
        Case("srft third party on 8 ranks", preset, emulated, eighth),
    ]


def _with_demo(advantages: Sequence[float], demo_advantage: float) -> PackedBatch:
    """A, B, C as rollouts of rewards 1, 0, 1, and D as their demonstration."""
    return fixture_f.batch(
        (ROLLOUT, ROLLOUT, ROLLOUT, DEMO),
        advantages=(*advantages, demo_advantage),
        correct=(True, False, True, True),
    )


def _lese() -> list[Case]:
    method = published("lese")
    rewards, solved = (3.1, 1.1, 0.4, 3.1), (True, False, False, True)
    credit = credited(method, rewards, solved=solved, demo_reward=3.1)
    keep = (*ALL, 3)
    coefs = (*(credit.rollout_coef,) * 4, credit.demo_coef)
    batch = fixture_f.batch(
        (*(ROLLOUT,) * 4, DEMO), keep, advantages=(*credit.advantages, 0.0), coefs=coefs
    )
    return [Case("lese", method, batch, -0.0077671661, keep=keep)]


def _luffy() -> list[Case]:
    fourth = {"max_response_length": 4}
    released = published("luffy", entropy_bonus=0.0, **fourth)
    credit = credited(released, (1, 0, 0), demo_reward=1)
    roles = (ROLLOUT, ROLLOUT, ROLLOUT, DEMO)
    batch = fixture_f.batch(roles, advantages=(*credit.advantages, credit.demo_advantage))
    text = published("luffy", preset="paper")
    eighth = published("luffy", preset="released", **fourth)
    return [
        Case("luffy", released, batch, -0.0366977202, {
            6: [0.0045064402, -0.0202862614, 0.0013573137, 0.0110840544, 0.0033384530],
            7: [0.0000408282, 0.0004973896, 0.0004973896, -0.0018556641, 0.0008200568]}),
        Case("luffy with bonus", published("luffy", **fourth), batch, -0.037653418191, {
            6: [0.0044990113, -0.0202876387, 0.0013473552, 0.0111130703, 0.0033282019]}),
        Case("luffy on 8 ranks", eighth, batch, -0.0366977202 / 8 - 0.001 * 0.9556979625),
        Case("luffy as written", text, fixture_f.batch(roles, advantages=STD_ADVANTAGES),
             0.0161369145),
    ]  # fmt: skip


def _mixtures() -> list[Case]:
    d1 = [0.0854188344, -0.3846620309, 0.0256967746, 0.2102855835, 0.0632608384]
    relift = Case("relift burst", published("relift"), demos((3,)), 0.817516217743, {0: d1},
                  keep=(3,))  # fmt: skip
    # Token means less 0.001 of entropies, of A and B, and of C and D; the mean of the two.
    ab = (6.7081212696 - 0.001 * 4.5340951928) / 5
    cd = (2.2625374604 - 0.001 * 3.1114885070) / 3
    halves = Case("relift burst by micro-batches", published("relift", preset="released_1_5b"),
                  demos(), (ab + cd) / 2)  # fmt: skip
    mu = published("chord")
    credit = credited(mu, (1, 0, 0))
    batch = fixture_f.batch((ROLLOUT, ROLLOUT, ROLLOUT, DEMO), advantages=(*credit.advantages, 0.0))
    phi = published("chord", preset="phi")
    constant = published("chord", peak=0.1, valley=0.1, decay_updates=0)
    hpt = {"entropy_bonus": 0.0, "max_response_length": 4}
    switched = fixture_f.batch((ROLLOUT, ROLLOUT, DEMO), (0, 1, 3), advantages=(0.5, -0.5, 0.0))
    a1 = [-0.0507040164, 0.0240332397, 0.0088413348, 0.0032525453, 0.0145768967]
    hpt_d1 = [0.0854485502, -0.3846565219, 0.0257366087, 0.2101695200, 0.0633018429]
    phi_d1 = [0.0015164596, -0.0068265179, 0.0004567488, 0.0037298887, 0.0011234209]
    return [
        relift, halves,
        Case("chord-mu at its peak", mu, batch, 0.7329498427, means={"train/pg": -0.0372971740}),
        Case("chord at 0.1", constant, batch, 0.0482858279),
        Case("chord-phi", phi, batch, -0.0194273217, {6: phi_d1}, {"train/sft": 0.1414013490}),
        Case("hpt", published("hpt", **hpt), switched, 0.8461124196, {0: a1, 5: hpt_d1},
             keep=(0, 1, 3)),
        Case("hpt 1.5B", published("hpt", preset="released_1_5b", policy_weight=1, **hpt),
             switched, 0.2731394284, keep=(0, 1, 3)),
    ]  # fmt: skip


def _cov() -> list[Case]:
    batch = rollouts(STD_ADVANTAGES)
    d2 = [0.0009793706, 0.0119311766, 0.0119311766, -0.0445129083, 0.0196711846]
    b2 = [0.0009414722, 0.0311772770, 0.0034545408, 0.0051535692, -0.0407268592]
    nobody = published("cov", cov_low=4.0)
    return [
        Case("kl-cov", published("cov", mode="kl", kl_fraction=0.3), batch, -0.1407659723,
             {7: d2, 3: b2}),
        # By hand: of A and B the largest covariance is a1's 0.797, of C and D d2's 0.337.
        Case("kl-cov by chunks", published("cov", mode="kl", kl_fraction=0.2, scope="chunk",
                                               chunk=2), batch, -0.1760468350),
        Case("clip-cov without candidates", nobody, batch, -0.0243836456),
    ]  # fmt: skip


CASES = [
    *_likelihood(), *_grpo(), *_srft(), *_lese(), *_luffy(), *_mixtures(), *_cov(),
]  # fmt: skip


def cases(*names: str) -> Any:
    """Parametrisation over the cases whose name begins with one of `names`."""
    found = [case for case in CASES if case.name.startswith(names)]
    assert found, f"no golden case begins with {names}"
    return pytest.mark.parametrize("case", found, ids=lambda case: case.name)
