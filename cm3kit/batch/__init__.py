"""Sampling of many rows into a folder: on from where it was stopped, each row once."""
