"""Reinforcement learning of decoders: rollouts by our own decoders, scores by an estimator, rewards, and one task."""
