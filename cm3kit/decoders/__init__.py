"""Ways to fill a canvas."""
