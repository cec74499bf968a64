"""The loops, and the worker that torchrun starts."""
