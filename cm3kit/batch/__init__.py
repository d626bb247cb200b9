"""Resumable sampling of many rows into a folder, each row once."""
