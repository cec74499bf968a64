r"""Data Rewriting (arXiv 2509.15157), Table 2, on the Qwen2.5-Math harness: means of 16 runs.

Template `qwen-boxed`; Llama's is in `dr_llama.py`. 4096 tokens is what the authors' copy of the
harness allows; the paper is silent. Graded by the harness's own rules, `qwen_math`, which leave
units alone on Minerva.
"""

from megatron_reason.config.template import TemplateConfig
from megatron_reason.evaluation.suite import Suite, suite

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."

DR = suite(
    Suite(
        name="dr",
        source="Data Rewriting (arXiv 2509.15157) section 4 and its released evaluation scripts",
        samples=dict.fromkeys(("math500", "minerva", "olympiadbench", "aime24", "amc23"), 16),
        temperature=1.0,
        top_p=1.0,
        max_tokens=4096,
        max_model_len=6144,
        template=TemplateConfig(
            name="qwen_no_system",
            system="You are a helpful assistant.",
            suffix=BOXED,
        ),
        reward="qwen_math",
        reward_of={"minerva": "qwen_math_units"},
    )
)
