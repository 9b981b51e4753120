"""A ranking report as a table and a plain dict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from mtlrec.config.tasks import MIN_TEST_POSITIVES
from mtlrec.evaluation.ranking_report import Mean, RankingReport
from mtlrec.evaluation.task_metrics import LABEL_FAULTS
from mtlrec.metrics import METRICS, Metrics


def ranking_dict(ranking: RankingReport) -> dict[str, Any]:
    return {
        "metric": ranking.metric,
        "relevance": ranking.relevance,
        "exponents": ranking.score.exponents,
        "users": ranking.users,
        "fused": _plain(ranking.fused),
        "all_alike": _plain(ranking.alike),
        "random_order": _plain(ranking.random_order),
        "tasks": {split: _plain(of) for split, of in ranking.tasks.items()},
        "best_alone": ranking.alone,
        "gains": _plain(ranking.gains),
    }


def _plain(figures: Mapping[str, Mapping[str, Mean]]) -> dict[str, dict[str, dict[str, float]]]:
    return {name: {metric: mean._asdict() for metric, mean in of.items()} for name, of in figures.items()}


def ranking_table(ranking: RankingReport) -> Table:
    title = f"order of each user's impressions, worth {_terms(ranking.relevance, ' + ')}"
    table = Table("score", title=title, caption=f"fused: {ranking.score}")
    for split, users in ranking.users.items():
        for metric in ranking.fused[split]:
            table.add_column(f"{split}, {users:,} users\n{metric}", justify="right")
    for name, figures in (
        ("fused", ranking.fused),
        ("all to one power", ranking.alike),
        ("by lot", ranking.random_order),
    ):
        table.add_row(name, *_cells(figures.values(), ".4f"))
    table.add_section()
    for task in next(iter(ranking.tasks.values())):
        table.add_row(task, *_cells((of[task] for of in ranking.tasks.values()), ".4f"))
    table.add_section()
    table.add_row(f"fused over {ranking.alone}", *_cells(ranking.gains.values(), "+.4f"))
    return table


def _cells(by_split: Iterable[Mapping[str, Mean]], kind: str) -> list[str]:
    return [f"{mean:{kind}} ± {half_width:.4f}" for of in by_split for mean, half_width in of.values()]


def _terms(weights: Mapping[str, float], joined_by: str) -> str:
    return joined_by.join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items() if weight)


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
    is_count = name in LABEL_FAULTS or (name in METRICS and METRICS[name].is_count)
    return f"{value:,.0f}" if is_count else f"{value:.4f}"
