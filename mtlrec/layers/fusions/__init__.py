"""The fusion layers, one file for each family."""
