"""Hugging Face <-> Megatron: one table per model family, read in both directions."""
