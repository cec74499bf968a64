"""The stage `score` on the real model: perplexities by definition, and what it sets aside."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.base import Stage, StageContext, build_stage
from megatron_reason.curation.score import ScoreConfig, tokenize
from megatron_reason.errors import ConfigError
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Finish, Status
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples
from tests.distributed import spawn

TEXTS = ("Half of 48 is 24, so the answer is 72.", "48 plus 24 is 72.", "x", "It is green.")


def test_what_is_scored_follows_the_context(smollm2: Path) -> None:
    template = load_template(TemplateConfig(), smollm2)
    row = {"sample_id": "a", "response": TEXTS[1], "finish": Finish.GIVEN,
           "messages": [{"role": "user", "content": "Sum?"}]}  # fmt: skip
    alone = tokenize(row, template, "response_only")
    assert template.tokenizer.decode(list(alone.ids)) == TEXTS[1]
    assert alone.num_targets == len(alone.ids) - 1
    whole = tokenize(row, template, "prompt")
    assert whole.ids[-alone.num_targets :] != alone.ids[1:]
    assert whole.num_targets == len(template.response_ids(TEXTS[1]))
    raw = tokenize(row, template, "raw")
    assert template.tokenizer.decode(list(raw.ids)) == "Sum?" + TEXTS[1]
    assert raw.ids[raw.num_prompt_tokens :] == alone.ids
    assert raw.num_targets == len(alone.ids)
    tokenizer: Any = template.tokenizer
    eos = tokenizer.eos_token
    opened = tokenize(row, template, "response_only", eos)
    assert opened.ids == (tokenizer.eos_token_id, *alone.ids)
    assert opened.num_targets == len(alone.ids)
    opened = tokenize(row, template, "raw", eos)
    assert opened.ids == (tokenizer.eos_token_id, *raw.ids)
    assert opened.num_targets == raw.num_targets
    assert tokenize(row, template, "response_only", "none") == alone
    cut = tokenize({**row, "finish": Finish.LENGTH}, template, "prompt")
    assert whole.ids[: len(cut.ids)] == cut.ids
    assert cut.num_targets == whole.num_targets - len(template.turn_end_ids)


def test_a_tokenizer_that_begins_texts_by_itself_can_be_told_not_to(smollm2: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    template = load_template(TemplateConfig(), smollm2)
    tokenizer: Any = template.tokenizer
    bos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.eos_token_id)]
    )
    row = {"sample_id": "a", "response": TEXTS[1], "messages": []}
    as_is, without = (tokenize(row, template, "response_only", b) for b in ("tokenizer", "none"))
    assert as_is == tokenize(row, template, "response_only", bos)
    assert as_is.ids[1:] == without.ids
    assert (as_is.num_targets, without.num_targets) == (len(without.ids), len(without.ids) - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"context": "prompt", "bos": "none"}, "the template begins the text"),
     ({"ppl_dtype": "bfloat16", "fp32_logits": True}, "bfloat16, too")],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ScoreConfig(name="scored", table="t", **settings)


def test_a_beginning_that_is_no_token_is_refused_before_the_model_is_loaded(
    smollm2: Path, tmp_path: Path
) -> None:
    write_samples(tmp_path / "in", [sample(0)])
    stage = build_stage(ScoreConfig(name="scored", table="t", bos="<s>"))
    with pytest.raises(ConfigError, match=r"'<s>' is no token .*\n.*such as one of .*<\|endoftext"):
        stage.run(context(tmp_path / "out", {"t": tmp_path / "in"}, model_folder=smollm2))


def run_stage(rank: int, world_size: int, model: str, table: str, output: str) -> None:
    from dataclasses import replace

    from megatron_reason.engine.topology import init_topology

    config = ScoreConfig(name="scored", table="t", where="correct", max_tokens=40)
    stage = build_stage(config)
    setting = context(Path(output), {"t": Path(table)}, model_folder=Path(model))
    setting = replace(setting, topology=init_topology(stage.parallel()))
    result = stage.run(setting)
    assert dict(result.counts) == {"nothing to score": 2, "longer than max_tokens": 1}
    first = build_stage(config.model_copy(update={"shard": "0/5"}))
    assert first.run(replace(setting, output=Path(output, "0"))).num_rows == 1
    official = config.model_copy(
        update={"ppl_dtype": "bfloat16", "overlong": "truncate", "bos": "<|endoftext|>"}
    )
    build_stage(official).run(replace(setting, output=Path(output, "official")))
    goes_on(stage, replace(setting, output=Path(output, "killed")))


def goes_on(stage: Stage[Any], setting: StageContext) -> None:
    """Parts of one row; killed at the second that has something to score, then started again."""
    from megatron_reason.curation import _parts
    from megatron_reason.engine import prepass

    score, scored = prepass.score_sequences, list[list[str]]()

    def until(calls: int) -> Callable[..., Any]:
        def scores(model: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
            if samples and len(scored) == calls:
                raise KeyboardInterrupt
            if samples:
                scored.append([sample.sample_id for sample in samples])
            return score(model, samples, *args, **kwargs)

        return scores

    with patch.object(_parts, "rows_per_batch", return_value=1):
        with (
            patch.object(prepass, "score_sequences", until(1)),
            pytest.raises(KeyboardInterrupt),
        ):
            stage.run(setting)
        with patch.object(prepass, "score_sequences", until(9)):
            assert stage.run(setting).num_rows == 2
    assert len(scored) == 2
    assert scored[0] != scored[1]


@pytest.mark.slow
def test_perplexities_are_those_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [sample(i, response=t, status=Status.OK) for i, t in enumerate((*TEXTS[:3], "1 " * 40))]
    rows.append(sample(9, response=TEXTS[3], status=Status.WRONG))
    rows.append(sample(10, response=" ", status=Status.OK))
    write_samples(tmp_path / "in", rows)
    spawn(run_stage, 1, str(smollm2), str(tmp_path / "in"), str(tmp_path / "out"))
    scored = read_table(tmp_path / "out", Kind.SAMPLES, filled=["ppl", "mean_entropy", "scorer"])
    assert read_table(tmp_path / "out/killed", Kind.SAMPLES).height == len(scored)
    assert sorted(scored["response"]) == sorted(TEXTS[:2])
    assert len(pl.read_parquet(tmp_path / "out/quarantine.parquet")) == 3
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    reference = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for row in scored.iter_rows(named=True):
        ids = torch.tensor([tokenizer(row["response"])["input_ids"]])
        with torch.no_grad():
            logits = reference(ids).logits[0, :-1]
        logprob = torch.log_softmax(logits, dim=1).gather(1, ids[0, 1:, None])
        loss = -logprob.mean().item()
        assert row["num_tokens"] == ids.shape[1] - 1
        # The stage computes in bfloat16, the reference in float32.
        assert row["ppl"] == pytest.approx(math.exp(loss), rel=0.05)
        assert row["nll_sum"] == pytest.approx(math.log(row["ppl"]) * row["num_tokens"])
        assert row["scorer"].endswith(":response_only")
        assert row["min_logprob"] == pytest.approx(logprob.min().item(), abs=0.2)
    official = read_table(tmp_path / "out/official", Kind.SAMPLES, filled=["ppl"])
    assert official["scorer"][0].endswith(":response_only:bos=<|endoftext|>:first=40:ppl=bfloat16")
    by_text = {row["response"]: row for row in official.iter_rows(named=True)}
    assert by_text.keys() == {*TEXTS[:3], "1 " * 40}
    assert by_text["1 " * 40]["num_tokens"] == 39
    for row in scored.iter_rows(named=True):
        other = by_text[row["response"]]
        assert other["num_tokens"] == row["num_tokens"] + 1
        mean = torch.tensor(math.log(other["ppl"]))
        assert mean.item() == pytest.approx(mean.bfloat16().item(), abs=1e-6)
        assert mean.item() != pytest.approx(other["nll_sum"] / other["num_tokens"], abs=1e-6)
        assert mean.item() == pytest.approx(other["nll_sum"] / other["num_tokens"], rel=0.01)
