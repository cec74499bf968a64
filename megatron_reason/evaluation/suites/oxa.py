r"""OXA (arXiv 2603.16206), Tables 1 and 2: six contests and courses, 128 samples a problem.

Graded by `deepscaler`, as the released evaluation does, which wants the thought finished with
`</think>`. The released scripts bound prompt and response together by 32768 tokens.
"""

from megatron_reason.config.template import TemplateConfig
from megatron_reason.evaluation.suite import Suite, suite

OXA = suite(
    Suite(
        name="oxa",
        source="OXA (arXiv 2603.16206) section 4.1 and its released evaluation scripts",
        samples={
            "aime24": 128, "aime25": 128, "brumo25": 128, "cmimc25": 128, "hmmt25": 128,
            "minerva": 64,
        },
        temperature=0.6,
        top_p=0.95,
        max_tokens=32768,
        max_model_len=32768,
        template=TemplateConfig(name="oxa"),
        reward="deepscaler",
    )
)  # fmt: skip
