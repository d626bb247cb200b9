"""Reinforcement learning of decoders: rollouts by this project's decoders, estimators, rewards, and one task."""
