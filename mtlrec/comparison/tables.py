"""A comparison as a table, lines of text and a plain dict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from mtlrec.comparison.comparison import Comparison
from mtlrec.comparison.report import answer, edge


def comparison_parts(comparison: Comparison) -> Iterator[Table | str]:
    """The ranking, the answer in words, and what sets the first of the ranking apart from each other candidate."""
    yield ranking_table(comparison)
    yield from filter(None, [*answer(comparison), edge(comparison)])
    best = len(comparison.candidates) - 1
    yield from (f"- {verdict.text}" for verdict in comparison.verdicts()[:best])


def ranking_table(comparison: Comparison) -> Table:
    seeds = len(comparison.seeds)
    over = f"gain over {comparison.baseline}, better above 0, and its 95 % interval"
    title = f"mean of {seeds} seeds on the test split; {over}"
    table = Table("mean rank", title=title, caption=" ".join(comparison.not_judged) or None)
    for column in ("", "parameters", "samples/s"):
        table.add_column(column, no_wrap=True)
    for task, metric in comparison.tasks.items():
        table.add_column(f"{task}, {metric}", justify="right")
    by_name = {one.name: one for one in comparison.candidates}
    for name, rank in comparison.ranking():
        results = comparison.results[name]
        rate = sum(result.samples_per_s for result in results) / len(results)
        cells = [_cell(comparison, name, task) for task in comparison.tasks]
        table.add_row(
            f"{rank:.1f}" if comparison.judged else "",
            name,
            f"{by_name[name].capacity.parameters:,}",
            f"{rate:,.0f}",
            *cells,
        )
    return table


def _cell(comparison: Comparison, name: str, task: str) -> str:
    values = comparison.values(name, task)
    mean = f"{sum(values) / len(values):.4f}"
    if name == comparison.baseline:
        return mean
    found = comparison.gain(name, task)
    return f"{mean} ({found.mean:+.4f} ± {found.half_width:.4f}{'*' if comparison.shown(name, task) else ''})"


def summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "baseline": comparison.baseline,
        "seeds": len(comparison.seeds),
        "ranking": [{"candidate": name, "mean_rank": rank} for name, rank in comparison.ranking()],
        "undecidable": comparison.undecidable,
        "learning_rates": comparison.factors,
        "gains": {
            one.name: {task: _gain(comparison, one.name, task) for task in comparison.tasks}
            for one in comparison.candidates
            if one.name != comparison.baseline
        },
        "verdicts": [verdict.text for verdict in comparison.verdicts()],
    }


def _gain(comparison: Comparison, name: str, task: str) -> dict[str, float | None]:
    mean, half_width = comparison.gain(name, task)
    return {"mean": mean, "half_width": None if half_width == float("inf") else half_width}
