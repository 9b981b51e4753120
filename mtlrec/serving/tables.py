"""A parity as a table."""

from __future__ import annotations

from rich.table import Table

from mtlrec.serving.parity import Parity


def parity_table(found: Parity) -> Table:
    table = Table("task", "metric", title=f"parity, {found.split}, {found.rows:,} rows")
    for name in ("checkpoint", "artifact", "change", "compiled to eager, at most"):
        table.add_column(name, justify="right")
    for task, metrics in found.metrics.items():
        for index, (metric, (before, after)) in enumerate(metrics.items()):
            apart = f"{found.differences[task]:.1e}" if index == 0 else ""
            if before is None or after is None:
                table.add_row(task if index == 0 else "", metric, "-", "-", "-", apart)
            else:
                row = (f"{before:.6f}", f"{after:.6f}", f"{after - before:+.1e}", apart)
                table.add_row(task if index == 0 else "", metric, *row)
    return table
