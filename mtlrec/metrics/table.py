"""Metrics as people and programs read them: a line, a table, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from mtlrec.config.tasks import MIN_TEST_POSITIVES
from mtlrec.metrics.task_metrics import Metrics


def flatten(metrics: Metrics) -> dict[str, float]:
    return {f"{task}/{name}": value for task, values in metrics.items() for name, value in values.items()}


def jsonable(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics_line(metrics: Metrics) -> str:
    shown = (
        f"{task} {'auc' if 'auc' in values else 'mse'} {values.get('auc', values.get('mse', math.nan)):.4f}"
        for task, values in metrics.items()
    )
    return ", ".join(shown)


def metrics_table(metrics: Metrics, title: str) -> Table:
    """Metrics down, tasks across; what a task does not have is left blank."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    few = [task for task, values in metrics.items() if values.get("positives", math.inf) < MIN_TEST_POSITIVES]
    caption = f"undecidable, under {MIN_TEST_POSITIVES} positives: {', '.join(few)}" if few else None
    table = Table("", title=title, caption=caption)
    for task in metrics:
        table.add_column(task, justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(_shown(name, values.get(name)) for values in metrics.values()))
    return table


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if name in ("rows", "positives", "inconsistent_labels", "missing_labels") else f"{value:.4f}"
