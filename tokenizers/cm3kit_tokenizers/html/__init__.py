"""HTML by byte spans."""
