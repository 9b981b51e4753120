"""Checkpoints: their folder, what is written and read, and starting one job from another's weights."""
