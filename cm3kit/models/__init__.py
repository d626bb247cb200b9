"""Backbones: what scores tokens."""
