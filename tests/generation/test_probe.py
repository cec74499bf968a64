from pathlib import Path

from transformers import AutoTokenizer

from megatron_reason.generation.probe import probe_sequence, random_sequence, text_sequences
from tools.make_tiny_model import VOCAB_SIZE, make_tiny_model


def test_the_model_s_own_tokens_of_a_text(smollm2: Path):
    ids = probe_sequence(smollm2)
    text = AutoTokenizer.from_pretrained(smollm2).decode(ids)
    assert text.startswith("Tom has 3 apples")
    assert probe_sequence(smollm2) == ids == text_sequences(smollm2)[0]


def test_random_tokens_where_there_is_no_tokenizer(tmp_path: Path):
    folder = make_tiny_model("Qwen2ForCausalLM", tmp_path)
    assert len(text_sequences(folder)) == 2
    for path in folder.glob("tokenizer*"):
        path.unlink()
    ids = probe_sequence(folder)
    assert ids == random_sequence(folder)
    assert len(set(ids)) > 30
    assert 0 <= min(ids) <= max(ids) < VOCAB_SIZE
