"""The training loop and what it needs: optimizers, metrics, telemetry, checkpoints."""
