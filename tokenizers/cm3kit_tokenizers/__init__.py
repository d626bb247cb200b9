"""Pages to integers and back. Knows nothing of models."""
