r"""Data Rewriting (arXiv 2509.15157), Table 2, for Llama-3.1-8B-Instruct: `dr` in its own turns.

The released scripts know two templates for Llama and do not say which one was used. Here stands the
one of the model's tokenizer, with the instruction of `qwen-boxed`.
"""

from dataclasses import replace

from megatron_reason.config.template import TemplateConfig
from megatron_reason.evaluation.suite import suite
from megatron_reason.evaluation.suites.dr import BOXED, DR

DR_LLAMA = suite(
    replace(
        DR,
        name="dr_llama",
        source=f"{DR.source}; the template is our reading",
        template=TemplateConfig(name="model", suffix=BOXED),
    )
)
