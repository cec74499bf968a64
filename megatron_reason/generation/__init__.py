"""Text from a model: token ids in, token ids and log-probs out. vLLM is fenced in here."""
