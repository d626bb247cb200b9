"""Metrics of models that need no downloaded weights."""
