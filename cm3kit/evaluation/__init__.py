"""Figures about models, by metrics that need no downloaded weights."""
