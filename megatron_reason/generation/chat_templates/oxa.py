r"""`qwen_no_system` with the instruction that OXA appends to every problem.

Source: the released OXA code; its SFT, RL and evaluation share the text. The paper's rendering
drops the braces of `\boxed{}`. Not here: the turn format (`qwen_no_system.py`).
"""

from megatron_reason.generation.chat_templates.qwen_no_system import CHATML
from megatron_reason.generation.templates import TEMPLATES, ChatTemplate

OXA_SUFFIX = (
    "\nLet's reason step by step. Enclose the reasoning process within <think>...</think>, then "
    "summarize it and present the final answer within \\boxed{} — for example: "
    "<think>reasoning process here</think> \\boxed{answer here}."
)

TEMPLATES.register("oxa")(ChatTemplate(CHATML, suffix=OXA_SUFFIX))
