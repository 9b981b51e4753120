"""Metrics as people read them in a log, and as a flat mapping."""

from __future__ import annotations

from mtlrec.metrics import METRICS, Metrics


def flatten(metrics: Metrics) -> dict[str, float]:
    return {f"{task}/{name}": value for task, values in metrics.items() for name, value in values.items()}


def metrics_line(metrics: Metrics) -> str:
    """Each task's first metric that judges it."""
    first = {task: next(name for name in METRICS if name in values) for task, values in metrics.items()}
    return ", ".join(f"{task} {name} {metrics[task][name]:.4f}" for task, name in first.items())
