"""What a model does inside: gates, experts, gradients, tables and calibration curves."""
