"""The numerics: per-token statistics over a sharded vocabulary, and the small maths around them."""
