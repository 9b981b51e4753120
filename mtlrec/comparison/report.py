"""A comparison as a page that opens anywhere: one file, no network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mtlrec.comparison.comparison import Comparison
from mtlrec.comparison.differences import Verdict, seeds_in_words
from mtlrec.comparison.figures import (
    calibration_curves,
    cosines_heatmap,
    gains_heatmap,
    gates_heatmap,
    pairs_worth_drawing,
    seesaw_scatter,
    slices_heatmap,
)
from mtlrec.comparison.latency import ROWS
from mtlrec.diagnosis.diagnosis import Diagnosis
from mtlrec.diagnosis.table_use import TableUse
from mtlrec.diagnosis.warnings import warnings_of
from mtlrec.io import write_text


def write_report(
    comparison: Comparison,
    latency_ms: Mapping[str, float],
    path: Path,
    title: str,
    diagnoses: Mapping[str, Diagnosis] | None = None,
) -> None:
    """`path` has its name only when it is whole.

    Args:
        latency_ms: by candidate, of one request (`latency.py`)
        diagnoses: by candidate, of its first seed
    """
    environment = Environment(
        loader=PackageLoader("mtlrec.comparison", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=_subtitle(comparison),
        answer=[*answer(comparison), *_cheapest(comparison, latency_ms)],
        tasks=comparison.tasks,
        rows=[_row(comparison, name, rank, latency_ms) for name, rank in comparison.ranking()],
        latency_rows=ROWS,
        baseline=comparison.baseline,
        notes=" ".join(comparison.not_judged),
        heatmap=_embedded(gains_heatmap(comparison)),
        scatters=[_embedded(seesaw_scatter(comparison, *pair)) for pair in pairs_worth_drawing(comparison)],
        verdicts=[verdict.text for verdict in comparison.verdicts()],
        first_verdicts=len(comparison.candidates) - 1,  # those of the best
        judged=comparison.judged,
        tuning=_tuning(comparison),
        at_the_edge=edge(comparison),
        tuning_seeds=seeds_in_words(len(next(iter(next(iter(comparison.tuning.values())).values())))),
        diagnoses=[_diagnosed(name, one) for name, one in (diagnoses or {}).items()],
        plotly_js=Markup(get_plotlyjs()),
    )
    write_text(path, page)


def answer(comparison: Comparison) -> list[str]:
    """What the comparison says, in a few sentences: the best by rank, and who is not ruled out against it."""
    if not comparison.judged:
        return ["Nothing is judged: no task has enough positives in the test split."]
    (best, rank), *others = comparison.ranking()
    lines = [f"{best} has the best mean rank, {rank:.1f} of {len(others) + 1} over {len(comparison.judged)} tasks."]
    against = {name: comparison.verdict(best, name) for name, _ in others}
    if len(others) == 1:
        return [*lines, *(f"{verdict.text}." for verdict in against.values())]
    for said, names in (
        ("Better than it somewhere", [name for name, one in against.items() if one.worse]),
        ("Not told apart from it", [name for name, one in against.items() if not one.worse and not one.better]),
        ("Worse somewhere, better nowhere", [name for name, one in against.items() if one.better and not one.worse]),
    ):
        if names:
            lines.append(f"{said}: {', '.join(_with_tasks(name, against[name]) for name in names)}.")
    equals = _not_told_apart(comparison)
    seesaws = [one for one in comparison.verdicts() if one.is_seesaw and {one.first, one.second} <= set(equals)]
    for one in seesaws:
        lines.append(f"A seesaw: {one.first} ({', '.join(one.better)}) and {one.second} ({', '.join(one.worse)}).")
    return lines


def _not_told_apart(comparison: Comparison) -> list[str]:
    """The best, and those of which no difference to it is shown."""
    (best, _), *others = comparison.ranking()
    verdicts = {name: comparison.verdict(best, name) for name, _ in others}
    return [best, *(name for name, one in verdicts.items() if not one.better and not one.worse)]


def _cheapest(comparison: Comparison, latency_ms: Mapping[str, float]) -> list[str]:
    """A sentence, where there are several among which the price may decide."""
    equals = _not_told_apart(comparison) if comparison.judged else []
    if len(equals) < 2:
        return []
    quickest, *_, slowest = sorted(equals, key=lambda name: latency_ms[name])
    return [
        f"Of those not told apart, {quickest} is the quickest behind the lookup ({latency_ms[quickest]:.1f} ms for "
        f"{ROWS} rows), {slowest} the slowest ({latency_ms[slowest]:.1f})."
    ]


def edge(comparison: Comparison) -> str:
    """Where the grid of learning rates may have been too narrow; empty where it was not."""
    if not comparison.at_the_edge:
        return ""
    return (
        f"At the edge of the learning rates that were tried, beyond which better ones may lie: "
        f"{', '.join(comparison.at_the_edge)}; give --learning-rates that go further."
    )


def _with_tasks(name: str, against: Verdict) -> str:
    """`against`: the best's verdict on it."""
    tasks = against.worse or against.better
    return f"{name} ({', '.join(tasks)})" if tasks else name


def _subtitle(comparison: Comparison) -> str:
    sizes = [one.capacity.parameters for one in comparison.candidates]
    rows = max(
        int(of.get("rows", 0)) for of in comparison.results[comparison.candidates[0].name][0].metrics["test"].values()
    )
    return (
        f"{len(comparison.candidates)} architectures, {seeds_in_words(len(comparison.seeds))} each, {min(sizes):,} to "
        f"{max(sizes):,} parameters behind the tables; judged on {rows:,} rows of the test split; mtlrec compare "
        f"{metadata.version('mtlrec')}"
    )


def _row(comparison: Comparison, name: str, rank: float, latency_ms: Mapping[str, float]) -> dict[str, Any]:
    (candidate,) = (one for one in comparison.candidates if one.name == name)
    return {
        "name": name,
        "rank": f"{rank:.1f}" if comparison.judged else "",
        "cells": [_cell(comparison, name, task) for task in comparison.tasks],
        "parameters": f"{candidate.capacity.parameters:,}",
        "mflop": f"{candidate.capacity.flops / 1e6:.3f}",
        "samples_per_s": f"{statistics.mean(one.samples_per_s for one in comparison.results[name]):,.0f}",
        "latency": f"{latency_ms[name]:.2f}",
        "factor": f"x{comparison.factors[name]:g}",
    }


def _cell(comparison: Comparison, name: str, task: str) -> dict[str, Any]:
    mean = statistics.mean(comparison.values(name, task))
    if name == comparison.baseline:
        return {"mean": mean, "shown": f"{mean:.4f}", "gain": "", "judgment": ""}
    found = comparison.gain(name, task)
    judgment = {1: "better", 0: "", -1: "worse"}[comparison.shown(name, task)]
    return {
        "mean": mean,
        "shown": f"{mean:.4f}",
        "gain": f"{found.mean:+.4f} ± {found.half_width:.4f}",
        "judgment": judgment if task in comparison.judged else "unjudged",
    }


def _tuning(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for name, _ in comparison.ranking():
        by_factor = comparison.tuning[name]
        for factor, results in sorted(by_factor.items()):
            chosen = " chosen" if factor == comparison.factors[name] and len(by_factor) > 1 else ""
            cells = (
                ["diverged"] * len(comparison.tasks)
                if any(result.diverged for result in results)
                else [
                    f"{statistics.mean(result.metrics['valid'][task][metric] for result in results):.4f}"
                    for task, metric in comparison.tasks.items()
                ]
            )
            rows.append({"name": name, "factor": f"x{factor:g}{chosen}", "cells": cells})
    return rows


def _diagnosed(name: str, found: Diagnosis) -> dict[str, Any]:
    return {
        "name": name,
        "rows": f"{found.rows:,}",
        "warnings": warnings_of(found),
        "levels": [
            {
                "name": level.name,
                "picture": _embedded(gates_heatmap(level)),
                "gates": [
                    {"name": gate, "entropy": f"{entropy:.2f}", "peaked": f"{peaked:.0%}"}
                    for gate, entropy, peaked in zip(level.gates, level.entropy, level.peaked, strict=True)
                ],
                "experts": [
                    {"name": expert, "norm": f"{norm:.2f}", "zeros": f"{zeros:.0%}"}
                    for expert, norm, zeros in zip(level.experts, level.norm, level.zeros, strict=True)
                ],
            }
            for level in found.levels
        ],
        "norms": [f"{task} {norm:.2g}" for task, norm in zip(found.tasks, found.gradient_norm, strict=True)],
        "cosines": _embedded(cosines_heatmap(found)),
        "curves": _embedded(calibration_curves(found)) if found.curves else None,
        "tables": [_table(table) for table in found.tables],
        "slices": _embedded(slices_heatmap(found.slices)) if found.slices else None,
        "slice_column": found.slices.column if found.slices else "",
    }


def _table(use: TableUse) -> dict[str, str]:
    norms = {"hot": use.growth("hot"), "seen": use.growth("seen"), "other": use.growth("other")}
    return {
        "name": use.name,
        **{kind: f"{getattr(use, kind):,}" for kind in ("rows", "lookups")},
        "found": f"{use.seen:,}",
        "hot_share": "" if math.isnan(use.hot_share) else f"{use.hot_share:.0%}",
        **{kind: "" if math.isnan(norm) else f"{norm:.1f}" for kind, norm in norms.items()},
    }


def _embedded(figure: go.Figure) -> Markup:
    html: str = figure.to_html(include_plotlyjs=False, full_html=False, config={"displayModeBar": False})
    return Markup(html)
