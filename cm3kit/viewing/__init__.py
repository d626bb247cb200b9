"""Results to look at: reports, players, animations, differences."""
