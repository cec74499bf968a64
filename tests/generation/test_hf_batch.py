"""Sequences that join and leave a batch are continued as if each were alone."""

from collections import deque

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from megatron_reason.generation.hf_batch import Row, RunningBatch

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "initializer_range": 0.5,
}  # fmt: skip
PROMPTS = [(1,), (3, 4, 5, 6, 7, 8, 9), (2, 3), (9, 8, 7, 6)]
LIMITS = [3, 20, 1, 11, 7, 2, 16, 5, 9, 4]


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.fixture(params=["everything", "window"])
def model(request):
    if request.param == "everything":
        return model_of(LlamaConfig(**SIZES))
    return model_of(MistralConfig(**SIZES, head_dim=8, sliding_window=4))


def greedy(logits_BV: Tensor, generators: object) -> tuple[Tensor, Tensor]:
    logprob_BV = logits_BV.log_softmax(-1)
    return logits_BV.argmax(-1), logprob_BV.max(-1).values


def row(number: int, limit: int) -> Row:
    return Row(PROMPTS[number % len(PROMPTS)], limit, torch.Generator(), (number, 0))


def run(model, rows: list[Row], places: int, stops=()) -> list[Row]:
    batch, waiting, done = RunningBatch(model, greedy, stops), deque(rows), []
    while waiting or len(batch):
        free = places - len(batch)
        if free and waiting:
            batch.join([waiting.popleft() for _ in range(min(free, len(waiting)))])
        done += batch.step()
        assert len(batch) <= places
    return done


def test_each_is_continued_as_if_it_were_alone(model):
    rows = [row(number, limit) for number, limit in enumerate(LIMITS)]
    done = run(model, rows, places=3)
    assert sorted(one.place for one in done) == [one.place for one in rows]
    assert [one.place[0] for one in done] != list(range(len(rows))), "short ones leave first"
    as_if_alone(model, rows)


def test_a_long_prompt_joins_short_ones_that_outlive_it(model):
    short, long = row(0, 16), row(1, 4)
    batch = RunningBatch(model, greedy, ())
    batch.join([short])
    for _ in range(3):
        batch.step()
    batch.join([long])
    while len(batch):
        batch.step()
    as_if_alone(model, [short, long])


def as_if_alone(model, rows: list[Row]) -> None:
    """Compare with the whole sequences, each read at once."""
    for one in rows:
        ids = torch.tensor([[*one.ids, *one.token_ids]])
        with torch.inference_mode():
            logprob_TV = model(ids).logits[0].log_softmax(-1)[len(one.ids) - 1 : -1]
        assert len(one.token_ids) == one.limit
        assert one.token_ids == logprob_TV.argmax(-1).tolist()
        assert one.logprobs == pytest.approx(logprob_TV.max(-1).values.tolist(), abs=1e-4)


def test_a_stop_token_ends_a_sequence(model):
    (free,) = run(model, [row(1, 12)], places=1)
    stop = free.token_ids[4]
    end = free.token_ids.index(stop) + 1
    other = row(0, 12)
    (stopped, _) = sorted(
        run(model, [row(1, 12), other], 2, stops=(stop,)), key=lambda r: -r.place[0]
    )
    assert stopped.token_ids == free.token_ids[:end]


def test_nothing_is_computed_twice_or_for_those_that_left(model):
    read: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, __, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    rows = [Row(PROMPTS[0], limit, torch.Generator(), (0, limit)) for limit in LIMITS]
    run(model, rows, places=len(rows))
    assert read[0] == (1, len(PROMPTS[0])), "equal prompts are read once"
    assert sum(size for size, _ in read[1:]) == sum(len(one.token_ids) - 1 for one in rows)
