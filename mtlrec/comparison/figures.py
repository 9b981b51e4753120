"""The pictures of a comparison. Colors of text and lines are left to the page, which has a light and a dark side."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlrec.comparison.comparison import Comparison
from mtlrec.diagnosis.diagnosis import Diagnosis
from mtlrec.diagnosis.level_sums import Level
from mtlrec.evaluation.slices import Slices

ABOVE = {"orientation": "h", "yanchor": "bottom", "y": 1.02}
FEW_POSITIVES = 20
BETTER_WORSE = [[0, "rgba(217,108,40,0.75)"], [0.5, "rgba(128,128,128,0.08)"], [1, "rgba(52,140,204,0.75)"]]


def gains_heatmap(comparison: Comparison) -> go.Figure:
    """Tasks across, architectures down: the gain over the baseline, in its task's colors from worst to best."""
    names = [name for name, _ in reversed(comparison.ranking()) if name != comparison.baseline]
    tasks = list(comparison.tasks)
    gains = [[comparison.gain(name, task) for task in tasks] for name in names]
    largest = [max((abs(row[column].mean) for row in gains), default=0.0) or 1.0 for column in range(len(tasks))]
    return go.Figure(
        go.Heatmap(
            z=[[one.mean / most for one, most in zip(row, largest, strict=True)] for row in gains],
            x=[f"{task}<br>{comparison.tasks[task]}" for task in tasks],
            y=names,
            text=[
                [
                    f"{one.mean:+.4f}{'*' if comparison.shown(name, task) else ''}"
                    for task, one in zip(tasks, row, strict=True)
                ]
                for name, row in zip(names, gains, strict=True)
            ],
            customdata=[[one.half_width for one in row] for row in gains],
            texttemplate="%{text}",
            hovertemplate="%{y}, %{x}: %{text} ± %{customdata:.4f}<extra></extra>",
            colorscale=BETTER_WORSE,
            zmin=-1,
            zmax=1,
            showscale=False,
        ),
        {"height": 120 + 34 * len(names), "margin": {"l": 10, "r": 10, "t": 10, "b": 10}},
    )


def seesaw_scatter(comparison: Comparison, first: str, second: str) -> go.Figure:
    """One task's gain against another's, with intervals: what lies in the upper left or lower right is a seesaw."""
    figure = go.Figure()
    for name, _ in comparison.ranking():
        if name == comparison.baseline:
            continue
        across, up = comparison.gain(name, first), comparison.gain(name, second)
        figure.add_scatter(
            x=[across.mean],
            y=[up.mean],
            error_x={"array": [across.half_width], "thickness": 1},
            error_y={"array": [up.half_width], "thickness": 1},
            mode="markers",
            marker={"size": 11},
            name=name,
            hovertemplate=f"{name}: %{{x:+.4f}}, %{{y:+.4f}}<extra></extra>",
        )
    figure.add_hline(0, line_width=1, line_color="gray")
    figure.add_vline(0, line_width=1, line_color="gray")
    figure.update_layout(
        xaxis_title=f"{first}, gain in {comparison.tasks[first]}",
        yaxis_title=f"{second}, gain in {comparison.tasks[second]}",
        height=430,
        legend=ABOVE,
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
    )
    return figure


def pairs_worth_drawing(comparison: Comparison, most: int = 4) -> list[tuple[str, str]]:
    """Of the judged tasks, first those between which a pair of architectures see-saws, then those whose gains point
    most against each other over the architectures, by their cosine; each task twice at most."""
    names = [one.name for one in comparison.candidates if one.name != comparison.baseline]
    gains = {task: np.array([comparison.gain(name, task).mean for name in names]) for task in comparison.judged}
    shown = {
        frozenset(pair) for one in comparison.verdicts() if one.is_seesaw for pair in product(one.better, one.worse)
    }

    def order(pair: tuple[str, str]) -> tuple[bool, float]:
        across, up = (gains[task] for task in pair)
        length = float(np.linalg.norm(across) * np.linalg.norm(up))
        return frozenset(pair) not in shown, float(across @ up) / length if length else 0.0

    drawn: list[tuple[str, str]] = []
    for pair in sorted(combinations(comparison.judged, 2), key=order):
        if all(sum(task in other for other in drawn) < 2 for task in pair) and len(drawn) < most:
            drawn.append(pair)
    return drawn


def gates_heatmap(level: Level) -> go.Figure:
    """Gates down, experts across: what the gates give, with deviations; beside it, where the residual adds
    something, what the experts are weighed with in the end."""
    shown = [("gates", level.gate)]
    if any(
        abs(a - b) > 1e-6
        for before, after in zip(level.gate, level.weight, strict=True)
        for a, b in zip(before, after, strict=True)
    ):
        shown.append(("with the residual", level.weight))
    figure = make_subplots(rows=1, cols=len(shown), subplot_titles=[title for title, _ in shown], shared_yaxes=True)
    for column, (_, means) in enumerate(shown, 1):
        figure.add_heatmap(
            z=means,
            x=level.experts,
            y=level.gates,
            text=[
                [f"{mean:.2f} ± {spread:.2f}" for mean, spread in zip(row, spreads, strict=True)]
                for row, spreads in zip(means, level.deviation, strict=True)
            ],
            texttemplate="%{text}" if len(level.experts) * len(shown) <= 12 else None,
            hovertemplate="%{y} from %{x}: %{text}<extra></extra>",
            colorscale=[[0, "rgba(128,128,128,0.06)"], [1, "rgba(52,140,204,0.85)"]],
            zmin=0,
            showscale=False,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=110 + 30 * len(level.gates), margin={"l": 10, "r": 10, "t": 30, "b": 10})
    return figure


def cosines_heatmap(diagnosis: Diagnosis) -> go.Figure:
    """Between the tasks' gradients on the pooled embeddings."""
    return go.Figure(
        go.Heatmap(
            z=diagnosis.gradient_cosine,
            x=diagnosis.tasks,
            y=diagnosis.tasks,
            text=[[f"{value:.2f}" for value in row] for row in diagnosis.gradient_cosine],
            texttemplate="%{text}",
            hovertemplate="%{y} and %{x}: %{text}<extra></extra>",
            colorscale=BETTER_WORSE,
            zmin=-1,
            zmax=1,
            showscale=False,
        ),
        {
            "height": 110 + 30 * len(diagnosis.tasks),
            "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            "yaxis": {"autorange": "reversed"},
        },
    )


def calibration_curves(diagnosis: Diagnosis) -> go.Figure:
    """Observed over predicted shares of positives, a line a task; on the diagonal the probabilities hold."""
    figure = go.Figure()
    shares = [
        share for curve in diagnosis.curves.values() for share in (*curve.predicted, *curve.observed) if share > 0
    ]
    ends = [min(shares, default=0.01), max(shares, default=1.0)]
    diagonal = {"color": "gray", "width": 1, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=diagonal, name="as predicted", hoverinfo="skip")
    for task, curve in diagnosis.curves.items():
        figure.add_scatter(
            x=curve.predicted,
            y=[share or None for share in curve.observed],
            mode="lines+markers",
            line={"width": 1.5},
            marker={"size": 5},
            name=task,
            hovertemplate=f"{task}: predicted %{{x:.4f}}, observed %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(type="log", exponentformat="power", title="predicted share of positives")
    figure.update_yaxes(type="log", exponentformat="power", title="observed")
    figure.update_layout(height=410, legend=ABOVE, margin={"l": 10, "r": 10, "t": 60, "b": 10})
    return figure


def slices_heatmap(slices: Slices) -> go.Figure:
    """Tasks down, the column's values across: AUC, in its task's colors around the task's mean over slices; without
    color where few positives make it."""
    auc, few = np.array(slices.auc), np.array(slices.positives) < FEW_POSITIVES
    middle = np.array([np.nanmean(row) if np.isfinite(row).any() else 0.0 for row in auc])[:, None]
    apart = np.where(few, 0, np.nan_to_num(np.abs(auc - middle))).max(axis=1, keepdims=True)
    return go.Figure(
        go.Heatmap(
            z=np.where(few & ~np.isnan(auc), 0, (auc - middle) / np.where(apart > 0, apart, 1)).tolist(),
            x=[f"{name}<br>{rows:,} rows" for name, rows in zip(slices.names, slices.rows, strict=True)],
            y=slices.tasks,
            text=[["" if np.isnan(value) else f"{value:.3f}" for value in row] for row in auc],
            customdata=slices.positives,
            texttemplate="%{text}",
            hovertemplate=f"%{{y}}, {slices.column} %{{x}}: %{{text}}, %{{customdata:,}} positives<extra></extra>",
            colorscale=BETTER_WORSE,
            zmin=-1,
            zmax=1,
            showscale=False,
        ),
        {
            "height": 130 + 30 * len(slices.tasks),
            "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            "xaxis": {"type": "category"},
            "yaxis": {"autorange": "reversed"},
        },
    )
