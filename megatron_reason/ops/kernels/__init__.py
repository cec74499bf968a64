"""Accelerated twins of the ops; the torch implementation in the room above is their definition."""
