"""What files say of how they were made, and how they are made again."""
