"""megatron_reason: SFT and RL methods for reasoning LLMs on Megatron-Core, one file per method."""

__version__ = "0.1.0"
