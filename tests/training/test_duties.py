from pathlib import Path

import pytest

from megatron_reason.config.template import TemplateConfig
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Finish
from megatron_reason.training.duties import _tokenized
from tools.make_tiny_model import make_tiny_model


@pytest.mark.parametrize("finish", [Finish.STOP, Finish.LENGTH])
def test_entropy_is_measured_on_the_tokens_that_were_generated(tmp_path: Path, finish: Finish):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "tiny")
    template = load_template(TemplateConfig(name="qwen_no_system"), model)
    row = {"problem_id": "p", "sample_index": "0", "response": "It is 2.", "finish": finish}
    sample = _tokenized(row, [{"role": "user", "content": "1+1?"}], template)
    stop = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    drawn = [*template.tokenizer.encode("It is 2."), *([stop] if finish is Finish.STOP else [])]
    assert list(sample.ids[sample.num_prompt_tokens :]) == drawn
