"""`qwen_no_system` whose prompt ends with an opened `<think>`, so that every answer begins in it.

Source: the tokenizers of LUFFY's released models, whose data, prompt and harness SRFT takes over.
Answers come without the tag; of a demonstration that has it, it is not learnt. Not here: the
system prompt that goes with it (`evaluation/suites/srft.py`).
"""

from megatron_reason.generation.templates import TEMPLATES, ChatTemplate

_JINJA = (
    "{% for message in messages %}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' %}"
    "{% if text.startswith('<think>') %}{% set text = text[7:] %}{% endif %}"
    "{% set text = '<think>\n' + text.lstrip('\n') %}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + text + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

TEMPLATES.register("qwen_think")(ChatTemplate(_JINJA))
