"""Megatron, and only here: topology, packing, aggregation, the update. Knows no method by name."""
