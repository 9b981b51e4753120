"""Metrics per task, calibration, and the ranking score: sums over rows, and the values that follow from them."""
