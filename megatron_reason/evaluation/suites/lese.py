r"""LESE, Tables 1 and 2: avg@32 of AIME and AMC, one sample of the others.

The paper prints the prompt without its opening `<answer>`, which its reward demands; it stands
here. Whether it is a system prompt, top-p, and which AMC are not stated: system, 1, and the 40
problems of which its ablation's pass@32 of 92.5 % is a whole number.
"""

from megatron_reason.config.template import TemplateConfig
from megatron_reason.evaluation.suite import Suite, suite

SYSTEM = (
    "You are a helpful AI Assistant that provides detailed thought processes and correct answers. "
    "Please respond in the following format: <think> [Your step-by-step thinking process here] "
    "</think> <answer> [Your clear solution and answer here, with the answer in \\boxed{}] "
    "</answer>"
)

LESE = suite(
    Suite(
        name="lese",
        source="LESE section 4.1; top-p, the place of the prompt and the AMC set are our reading",
        samples={"aime24": 32, "aime25": 32, "amc23": 32, "math500": 1, "gpqa_diamond": 1},
        temperature=0.6,
        top_p=1.0,
        max_tokens=8192,
        max_model_len=10240,
        template=TemplateConfig(name="qwen_no_system", system=SYSTEM),
    )
)
