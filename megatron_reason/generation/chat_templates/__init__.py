"""Chat templates by name, one file each; `model` is none of them: it is the tokenizer's own."""
