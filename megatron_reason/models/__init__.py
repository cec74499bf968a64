"""Hugging Face <-> Megatron. One file is one architecture, as a table read in both directions."""
