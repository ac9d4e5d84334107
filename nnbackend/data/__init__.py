"""From what a user has to what a step takes."""
