import json
import shutil
from pathlib import Path

import pytest

from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.generation.chat_templates.oxa import OXA_SUFFIX
from megatron_reason.generation.templates import TEMPLATES, Template, exported_jinja, load_template
from megatron_reason.schema.records import Message

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have?"
ANSWER = "He has 3 + 4 = 7 apples.\n\nThe answer is \\boxed{7}."
TOKENIZER_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


@pytest.fixture
def folder(smollm2: Path, tmp_path: Path) -> Path:
    """SmolLM2's folder without weights, to be changed."""
    for name in TOKENIZER_FILES:
        shutil.copy(smollm2 / name, tmp_path / name)
    return tmp_path


@pytest.fixture(params=["model", *TEMPLATES.names()])
def template(request: pytest.FixtureRequest, smollm2: Path) -> Template:
    return load_template(TemplateConfig(name=request.param), smollm2)


@pytest.mark.parametrize("answer", [ANSWER, "7", "- one\n- two", "Größe: 7 €", "<think>a</think>7"])
def test_prompt_and_response_join_to_the_whole_chat(template: Template, answer: str):
    question = QUESTION + template.chat.suffix
    chat = template.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        chat_template=template.chat.jinja,
        tokenize=False,
    )
    joined = [*template.prompt_ids([Message("user", QUESTION)]), *template.response_ids(answer)]
    assert joined == template.tokenizer.encode(chat, add_special_tokens=False)


def test_response_ends_with_stop_token_and_what_the_template_writes_after_it(template: Template):
    ids = template.response_ids(ANSWER)
    *text, stop, newline = ids
    assert stop in template.stop_token_ids
    assert not set(text) & set(template.stop_token_ids)
    assert template.tokenizer.decode([stop, newline]) == "<|im_end|>\n"
    assert template.turn_end_ids == (stop, newline)
    assert template.response_ids(ANSWER, finished=False) == text
    assert template.generated_ids(ANSWER) == [*text, stop]
    assert template.generated_ids(ANSWER, finished=False) == text


def test_decode_inverts_response_ids(template: Template):
    assert template.decode(template.response_ids(ANSWER, finished=False)) == ANSWER
    assert template.decode(template.response_ids(ANSWER)) == ANSWER + "\n"


def test_qwen_no_system_writes_no_system_prompt(smollm2: Path):
    template = load_template(TemplateConfig(name="qwen_no_system"), smollm2)
    rendered = template.tokenizer.decode(template.prompt_ids([Message("user", "Hi")]))
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_begins_in_the_thought_that_the_prompt_has_opened(smollm2: Path):
    template = load_template(TemplateConfig(name="qwen_think"), smollm2)
    rendered = template.tokenizer.decode(template.prompt_ids([Message("user", "Hi")]))
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    told = [template.response_ids(text) for text in ("<think>\nab</think>", "ab</think>")]
    assert told[0] == told[1]
    assert template.decode(told[0]) == "ab</think>\n"
    assert template.answer(told[0]) == "<think>\nab</think>\n"
    assert template.response_ids(template.answer(told[0]).rstrip()) == told[0]
    other = load_template(TemplateConfig(name="qwen_no_system"), smollm2)
    assert other.decode(other.response_ids("<think>\na")) == "<think>\na\n"
    assert other.answer(other.response_ids("a")) == "a\n"


def test_a_models_own_template_that_opens_the_thought_is_noticed(folder: Path):
    jinja = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert load_template(TemplateConfig(), folder).opening == ""
    opened = jinja.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    (folder / "chat_template.jinja").write_text(opened, encoding="utf-8")
    assert load_template(TemplateConfig(), folder).opening == "<think>"


def test_oxa_appends_its_suffix_to_the_last_user_message_only(smollm2: Path):
    template = load_template(TemplateConfig(name="oxa"), smollm2)
    messages = [Message("user", "A"), Message("assistant", "B"), Message("user", "C")]
    rendered = template.tokenizer.decode(template.prompt_ids(messages))
    assert rendered == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
        f"<|im_start|>user\nC{OXA_SUFFIX}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert OXA_SUFFIX.endswith("<think>reasoning process here</think> \\boxed{answer here}.")


def test_configured_system_prompt_goes_before_conversations_without_one(smollm2: Path):
    template = load_template(TemplateConfig(name="qwen_no_system", system="Be brief."), smollm2)
    rendered = template.tokenizer.decode(template.prompt_ids([Message("user", "Hi")]))
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    own = [Message("system", "Own."), Message("user", "Hi")]
    assert "Be brief." not in template.tokenizer.decode(template.prompt_ids(own))


def test_hash_follows_everything_that_changes_ids(folder: Path):
    def hash_of(**fields: str) -> str:
        return load_template(TemplateConfig(**fields), folder).hash

    base = hash_of()
    assert hash_of() == base
    assert len({base, hash_of(suffix="!"), hash_of(system="S"), hash_of(name="oxa")}) == 4
    jinja = folder / "chat_template.jinja"
    jinja.write_text(jinja.read_text().replace("SmolLM", "SmallLM"))
    assert hash_of() != base


def test_stop_tokens_include_those_of_the_generation_config(folder: Path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert load_template(TemplateConfig(), folder).stop_token_ids == (0, 2)


def test_tokenizer_of_another_model_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 49151}))
    with pytest.raises(DataError, match=r"id 49151, but config.json has vocab_size 49151"):
        load_template(TemplateConfig(), folder)


def test_missing_chat_template_names_the_others(folder: Path):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="qwen_no_system"):
        load_template(TemplateConfig(), folder)
    load_template(TemplateConfig(name="qwen_no_system"), folder)


def test_turn_end_without_special_token_is_refused(folder: Path):
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    )
    with pytest.raises(DataError, match="no special token"):
        load_template(TemplateConfig(), folder)


def test_unknown_name_and_empty_folder(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="qwen_no_system"):
        load_template(TemplateConfig(name="qwen_no_sytem"), folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no tokenizer"):
        load_template(TemplateConfig(), empty)


def test_suffix_needs_a_user_message(smollm2: Path):
    template = load_template(TemplateConfig(suffix="!"), smollm2)
    with pytest.raises(DataError, match="no user message"):
        template.prompt_ids([Message("system", "S")])
    with pytest.raises(DataError, match="without messages"):
        template.prompt_ids([])


def test_a_trained_model_carries_the_template_it_was_trained_with(folder: Path):
    config = TemplateConfig(name="qwen_no_system")
    jinja = exported_jinja(config)
    assert exported_jinja(TemplateConfig()) is None
    (folder / "chat_template.jinja").write_text(str(jinja), encoding="utf-8")
    trained, own = load_template(config, folder), load_template(TemplateConfig(), folder)
    turns = [Message("user", "2 + 2?")]
    assert own.prompt_ids(turns) == trained.prompt_ids(turns)
