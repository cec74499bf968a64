import math
from collections.abc import Callable

import pytest
import torch

from megatron_reason.errors import DataError
from megatron_reason.ops.token_stats import HeadOptions, token_stats, token_stats_from_logits
from megatron_reason.schema.batch import Stat
from tests.distributed import spawn

HIDDEN, WEIGHT = torch.zeros(3, 4), torch.zeros(6, 4)
TARGET = torch.tensor([0, 5, 2])


def poisoned(value: float) -> torch.Tensor:
    hidden = HIDDEN.clone()
    hidden[1, 2] = value
    return hidden


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "target above": (
        lambda: token_stats(HIDDEN, WEIGHT, torch.tensor([0, 6, 7])),
        r"target\[1\].*\n.*token id 6 is outside the vocabulary of 6 \(2 of 3",
    ),
    "target ignored": (
        lambda: token_stats_from_logits(torch.zeros(3, 6), torch.tensor([0, 1, -100])),
        r"target\[2\].*\n.*token id -100",
    ),
    "target in the padding": (
        lambda: token_stats(HIDDEN, WEIGHT, TARGET, vocab_size=5),
        r"target\[1\].*\n.*token id 5 is outside the vocabulary of 5",
    ),
    "nan": (lambda: token_stats(poisoned(math.nan), WEIGHT, TARGET), r"hidden\[1, 2\].*\n.*nan"),
    "inf": (lambda: token_stats(poisoned(math.inf), WEIGHT, TARGET), r"hidden\[1, 2\].*\n.*inf"),
    "nan in the reference": (
        lambda: token_stats(HIDDEN, WEIGHT, TARGET, reference=(poisoned(math.nan), WEIGHT)),
        r"reference hidden\[1, 2\]",
    ),
    "three axes": (lambda: token_stats(HIDDEN[None], WEIGHT, TARGET), r"shape \[1, 3, 4\]"),
    "integer logits": (
        lambda: token_stats_from_logits(torch.zeros(3, 6).long(), TARGET),
        "int64 of shape",
    ),
    "other width": (lambda: token_stats(HIDDEN, torch.zeros(6, 5), TARGET), "width is 5"),
    "other type": (lambda: token_stats(HIDDEN, WEIGHT.bfloat16(), TARGET), "bfloat16 and hidden"),
    "int32 target": (lambda: token_stats(HIDDEN, WEIGHT, TARGET.int()), "int32 of shape"),
    "short target": (lambda: token_stats(HIDDEN, WEIGHT, TARGET[:2]), r"shape \[3\]"),
    "vocabulary larger": (
        lambda: token_stats(HIDDEN, WEIGHT, TARGET, vocab_size=7),
        "holds 6 vocabulary columns.*vocabulary of 7",
    ),
    "temperature": (lambda: token_stats(HIDDEN, WEIGHT, TARGET, temperature=0.0), "it is 0.0"),
    "no chunk": (
        lambda: token_stats(HIDDEN, WEIGHT, TARGET, options=HeadOptions(tokens_per_chunk=0)),
        "tokens_per_chunk",
    ),
    "reference tokens": (
        lambda: token_stats(HIDDEN, WEIGHT, TARGET, reference=(HIDDEN[:2], WEIGHT)),
        "has 2 tokens and 6 vocabulary columns",
    ),
    "reference logits": (
        lambda: token_stats_from_logits(
            torch.zeros(3, 6), TARGET, reference_logits=torch.zeros(3, 5)
        ),
        r"logits are \[3, 5\], the model's \[3, 6\]",
    ),
    "no reference": (
        lambda: token_stats(HIDDEN, WEIGHT, TARGET, extras={Stat.KL_REF}),
        "'kl_ref' was asked for",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_the_place_and_the_values(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        call()


def test_unchecked_values_pass_through() -> None:
    options = HeadOptions(check=False)
    stats = token_stats(poisoned(math.nan), WEIGHT, TARGET, options=options)
    assert stats.logprob_T.isnan().tolist() == [False, True, False]


def test_two_types_are_one_in_float32_logits() -> None:
    options = HeadOptions(fp32_logits=True)
    stats = token_stats(HIDDEN.bfloat16(), WEIGHT, TARGET, options=options)
    torch.testing.assert_close(stats.entropy_T, torch.full((3,), math.log(6)))


def every_rank_refuses(rank: int, world_size: int) -> None:
    """Without a barrier between the calls: a rank that went on would hang or meet another's."""
    group = torch.distributed.group.WORLD
    for target, hidden, weight, message in (
        (torch.tensor([0, 11, 2]), HIDDEN, WEIGHT, r"target\[1\]"),
        (TARGET, poisoned(math.nan), WEIGHT, r"hidden\[1, 2\]"),
        (TARGET, HIDDEN, WEIGHT[:5], "too few"),
        (TARGET, HIDDEN, torch.zeros(11, 4), "alone is the whole vocabulary"),
    ):
        with pytest.raises(DataError, match=message):
            token_stats(hidden, weight, target, tp_group=group, vocab_size=11)
    stats = token_stats(HIDDEN, WEIGHT, TARGET, tp_group=group, vocab_size=11)
    torch.testing.assert_close(stats.entropy_T, torch.full((3,), math.log(11)))


def test_every_rank_refuses_before_any_collective() -> None:
    spawn(every_rank_refuses, 2, megatron=False)


def one_rank_alone_is_wrong(rank: int, world_size: int) -> None:
    """Every call raises on both ranks, and the next finds them in step."""
    group = torch.distributed.group.WORLD
    here = "rank\\(s\\) \\[1\\] of tp_group refuse"
    for target, hidden, weight, own, others in (
        (torch.tensor([0, 11, 2]), HIDDEN, WEIGHT, r"target\[1\]", here),
        (TARGET, poisoned(math.nan), WEIGHT, r"hidden\[1, 2\]", here),
        (TARGET, HIDDEN, WEIGHT.double(), "it is torch.float64", here),
        (TARGET, HIDDEN, torch.tensor(1.0), "a floating-point matrix is needed", here),
        (TARGET, HIDDEN, torch.zeros(7, 4), r"have \[6, 7\] vocabulary columns", None),
        (TARGET[:2], HIDDEN[:2], WEIGHT, r"have \[3, 2\] tokens", None),
    ):
        mine = (hidden, weight, target) if rank else (HIDDEN, WEIGHT, TARGET)
        with pytest.raises(DataError, match=own if rank else others or own):
            token_stats(*mine, tp_group=group, vocab_size=11)
    with pytest.raises(DataError, match=r"have \[6, 7\] vocabulary columns"):
        token_stats_from_logits(torch.zeros(3, 6 + rank), TARGET, tp_group=group, vocab_size=11)
    with pytest.raises(DataError, match="a floating-point matrix is needed" if rank else here):
        token_stats_from_logits(
            torch.zeros(3) if rank else torch.zeros(3, 6), TARGET, tp_group=group, vocab_size=11
        )
    stats = token_stats(HIDDEN, WEIGHT, TARGET, tp_group=group, vocab_size=11)
    torch.testing.assert_close(stats.entropy_T, torch.full((3,), math.log(11)))


def test_what_one_rank_refuses_every_rank_refuses() -> None:
    spawn(one_rank_alone_is_wrong, 2, megatron=False)
