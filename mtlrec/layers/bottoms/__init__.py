"""The bottoms, one file for each kind."""
