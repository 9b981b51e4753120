"""What is in Parquet files, as a table."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from mtlrec.data.profiling.inspect import Report


def report_table(report: Report) -> Table:
    """A row per column."""
    size = f"{report.bytes / 1e9:.2f} GB" if report.bytes > 1e8 else f"{report.bytes / 1e6:.2f} MB"
    title = f"{report.files} files, {report.row_groups} row groups, {report.rows:,} rows, {size}"
    sampled = f"distinct, min, max, mean and lengths are of {report.sampled_rows:,} sampled rows; nulls of all"
    table = Table(title=title, caption=sampled, title_justify="left")
    for heading in ("column", "type", "nulls", "distinct", "min", "max", "mean", "length"):
        table.add_column(heading, justify="left" if heading in ("column", "type") else "right", overflow="fold")
    for one in report.columns:
        nulls = "" if one.nulls is None else f"{100 * one.nulls / report.rows:.1f} %"
        lengths = "" if one.max_length is None else f"{one.mean_length:.1f}, at most {one.max_length}"
        numbers = [_short(value) for value in (one.distinct, one.min, one.max, one.mean)]
        table.add_row(*map(escape, (one.name, one.type, nulls, *numbers, lengths)))
    return table


def _short(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value if len(value) <= 16 else value[:15] + "\u2026"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
