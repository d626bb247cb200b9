"""Viewers of results: reports, players, animations, differences."""
