"""Fill a board everywhere at once, a few slots at a step."""
