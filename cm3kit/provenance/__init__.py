"""Provenance of output files, and their reproduction."""
