"""OXA (arXiv 2603.16206), Figure 4d: questions out of its domain, in the template of training.

The paper does not say how many samples it draws of each; one is our choice.
"""

from megatron_reason.config.template import TemplateConfig
from megatron_reason.evaluation.suite import Suite, suite

OXA_OOD = suite(
    Suite(
        name="oxa_ood",
        source="OXA (arXiv 2603.16206) Figure 4d; samples a problem are our choice",
        samples={"gpqa_diamond": 1, "mmlu_stem": 1},
        temperature=0.6,
        top_p=0.95,
        max_tokens=32768,
        max_model_len=32768,
        template=TemplateConfig(name="oxa"),
        reward="deepscaler",
    )
)
