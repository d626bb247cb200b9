"""How clean documents become questions."""
