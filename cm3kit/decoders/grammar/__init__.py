"""Constraints on the ids of a position, for both decoders and any order of writing."""
