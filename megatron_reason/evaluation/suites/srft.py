r"""SRFT (arXiv 2506.19767), Table 2, on the harness of LUFFY: avg@32 of small sets, else pass@1.

The system prompt is the text stored in LUFFY's data; as in their models' template the prompt ends
with `<think>`, so that answers begin inside it. `oat_after_think` grades what follows the first
`</think>`, as LUFFY's evaluation does when it is run as its page says. top-p is LUFFY's default.
"""

from megatron_reason.config.template import TemplateConfig
from megatron_reason.evaluation.suite import Suite, suite

SYSTEM = (
    "Your task is to follow a systematic, thorough reasoning process before providing the final "
    "solution. This involves analyzing, summarizing, exploring, reassessing, and refining your "
    "thought process through multiple iterations. Structure your response into two sections: "
    "Thought and Solution. In the Thought section, present your reasoning using the format: "
    '"<think>\n {thoughts} </think>\n". Each thought should include detailed analysis, '
    'brainstorming, verification, and refinement of ideas. After "</think>\n," in the Solution '
    "section, provide the final, logical, and accurate answer, clearly derived from the "
    "exploration in the Thought section. If applicable, include the answer in \\boxed{} for "
    "closed-form results like multiple choices or mathematical solutions."
)

SRFT = suite(
    Suite(
        name="srft",
        source="SRFT (arXiv 2506.19767) section 4.1 and LUFFY's released evaluation",
        samples={
            "aime24": 32, "amc83": 32, "math500": 1, "minerva": 1, "olympiadbench": 1,
            "arc_c": 1, "gpqa_diamond": 1, "mmlu_pro": 1,
        },
        temperature=0.6,
        top_p=1.0,
        max_tokens=8192,
        max_model_len=10240,
        template=TemplateConfig(name="qwen_think", system=SYSTEM),
        reward="oat_after_think",
    )
)  # fmt: skip
