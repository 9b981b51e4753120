"""A diagnosis as tables: gates and experts, gradients of the tasks, tables, probabilities, slices."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

from rich.table import Table

from mtlrec.diagnosis.diagnosis import Diagnosis
from mtlrec.evaluation.slices import Slices


def diagnosis_tables(found: Diagnosis) -> Iterator[Table]:
    for level in found.levels:
        table = Table("gate", *level.experts, "entropy", "one over 0.9", title=f"{level.name}, {found.rows:,} rows")
        for index, gate in enumerate(level.gates):
            given = zip(level.gate[index], level.deviation[index], level.weight[index], strict=True)
            cells = [
                f"{mean:.2f} ± {spread:.2f}" + (f" ({weight:.2f})" if abs(weight - mean) > 1e-6 else "")
                for mean, spread, weight in given
            ]
            table.add_row(gate, *cells, f"{level.entropy[index]:.2f}", f"{level.peaked[index]:.0%}")
        table.add_section()
        table.add_row("output norm", *(f"{norm:.2f}" for norm in level.norm))
        table.add_row("zeros", *(f"{zeros:.0%}" for zeros in level.zeros))
        if level.weight != level.gate:
            table.caption = "in brackets: with the residual"
        yield table
    yield from _gradient_and_table_tables(found)
    if found.curves:
        yield _curves_table(found)
    if found.slices:
        yield _slices_table(found.slices)


def _gradient_and_table_tables(found: Diagnosis) -> Iterator[Table]:
    table = Table("", "norm", *found.tasks, title="gradients of the tasks on the pooled embeddings: norms, cosines")
    for task, norm, cosines in zip(found.tasks, found.gradient_norm, found.gradient_cosine, strict=True):
        table.add_row(task, f"{norm:.3g}", *(f"{cosine:.2f}" for cosine in cosines))
    yield table
    columns = ("table", "rows", "seen", "lookups", "to the hottest 1%", "hot", "seen", "not seen")
    table = Table(*columns, title="tables: what is looked up, and rows' lengths over those they were drawn with")
    for one in found.tables:
        norms = [_number(growth, ".1f") for growth in (one.growth("hot"), one.growth("seen"), one.growth("other"))]
        counts = [f"{count:,}" for count in (one.rows, one.seen, one.lookups)]
        table.add_row(one.name, *counts, _number(one.hot_share, ".0%"), *norms)
    yield table


def _curves_table(found: Diagnosis) -> Table:
    title = "predicted and observed shares of positives, by fifths of the rows in the order of the prediction"
    table = Table("task", "lowest", "second", "third", "fourth", "highest", title=title)
    for task, curve in found.curves.items():
        cells = []
        for part in range(5):
            buckets = slice(part * len(curve.rows) // 5, (part + 1) * len(curve.rows) // 5)
            rows = sum(curve.rows[buckets]) or math.nan
            predicted, observed = (
                sum(map(operator.mul, of[buckets], curve.rows[buckets])) / rows
                for of in (curve.predicted, curve.observed)
            )
            cells.append(f"{_number(predicted, '.3f')}, {_number(observed, '.3f')}")
        table.add_row(task, *cells)
    return table


def _slices_table(slices: Slices) -> Table:
    table = Table(slices.column, "rows", *slices.tasks, title=f"AUC within values of {slices.column} (positives)")
    for index, name in enumerate(slices.names):
        cells = [
            f"{_number(auc[index], '.4f')} ({positives[index]:,})"
            for auc, positives in zip(slices.auc, slices.positives, strict=True)
        ]
        table.add_row(name, f"{slices.rows[index]:,}", *cells)
    return table


def _number(value: float, kind: str) -> str:
    return "-" if math.isnan(value) else format(value, kind)
