"""ChatML without a system prompt unless the conversation has one, as OXA trains and evaluates.

Source: the released OXA code, whose chat template drops the tokenizer's default system branch and
whose targets end with `<|im_end|>` and the newline after it, both trained on. Not here: the
instruction OXA appends to a problem (`oxa.py`).
"""

from megatron_reason.generation.templates import TEMPLATES, ChatTemplate

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEMPLATES.register("qwen_no_system")(ChatTemplate(CHATML))
