"""The causal decoder: from left to right, on a key-value cache."""
