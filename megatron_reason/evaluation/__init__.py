"""Benchmarks: generate, grade, estimate, with intervals and a card of how it was done."""
