"""What is in a set of Parquet files.

Rows, types and nulls are read from the footers, and so are exact; the rest is counted in a sample: the first rows of
row groups spread over the files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtlrec.data.sources.arrow_types import is_number, is_text, plain
from mtlrec.data.sources.dataset import Dataset, list_row_groups
from mtlrec.data.sources.files import split_root, store_of
from mtlrec.data.sources.parquet import RowGroupReader, stacked

SAMPLED_GROUPS, SAMPLED_ROWS = 16, 20_000


@dataclass(frozen=True)
class ColumnReport:
    """Of one column. `nulls` is exact, or None where a footer does not say; the rest is the sample's, of `seen` values
    that are neither null nor NaN: `distinct` values (of a list's items), extremes, the mean, and of lists the lengths.
    """

    name: str
    type: str
    nulls: int | None
    seen: int
    distinct: int | None
    min: float | str | None = None
    max: float | str | None = None
    mean: float | None = None
    std: float | None = None
    mean_length: float | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class Report:
    """`partitions`: of every column that folders' names give its values in order, as they stand there; `left_out`: the
    files that cannot be read."""

    files: int
    row_groups: int
    rows: int
    bytes: int
    sampled_rows: int
    columns: list[ColumnReport]
    partitions: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def inspect(path: str) -> Report:
    """Raises DataError where nothing is there that can be read."""
    root, pattern = split_root(path)
    dataset = list_row_groups(root, [pattern], {}, on_error="skip_file")
    sample = _sample(dataset)
    nulls = _nulls(dataset)
    return Report(
        files=len(dataset.files),
        row_groups=len(dataset.row_groups),
        rows=dataset.rows,
        bytes=sum(file.size for file in dataset.files),
        sampled_rows=sample.num_rows,
        columns=[_column(name, sample[name], nulls.get(name)) for name in sample.column_names],
        partitions=_partitions(dataset),
        left_out=[one.message for one in dataset.left_out],
    )


def _sample(dataset: Dataset) -> pa.Table:
    chosen = np.unique(np.linspace(0, len(dataset.row_groups) - 1, SAMPLED_GROUPS).astype(int)).tolist()
    reader = RowGroupReader(replace(dataset, row_groups=tuple(dataset.row_groups[index] for index in chosen)), None)
    return stacked([reader.first_rows(index, SAMPLED_ROWS) for index in range(len(chosen))])


def _nulls(dataset: Dataset) -> dict[str, int | None]:
    """Of columns that are no lists, from the footers' statistics."""
    store, nulls = store_of(dataset.root), dict[str, int | None]()
    for file in dataset.files:
        with store.system.open_input_file(file.key) as source:
            metadata = pq.read_metadata(source)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                count = column.statistics.null_count if column.is_stats_set else None
                before = nulls.get(column.path_in_schema, 0)
                nulls[column.path_in_schema] = None if count is None or before is None else before + count
    return nulls


def _partitions(dataset: Dataset) -> dict[str, list[str]]:
    values: dict[str, set[str]] = {}
    for file in dataset.files:
        for column, value in file.partition.items():
            values.setdefault(column, set()).update([] if value is None else [value])
    return {column: sorted(of) for column, of in values.items()}


def _column(name: str, column: pa.ChunkedArray, nulls: int | None) -> ColumnReport:
    kind = plain(column.type)
    lengths: dict[str, Any] = {}
    values = column
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        counts = pc.fill_null(pc.list_value_length(column), 0)
        lengths = {"mean_length": pc.mean(counts).as_py(), "max_length": pc.max(counts).as_py()}
        values = pc.list_flatten(column)
    known = values.drop_null().cast(plain(values.type))
    if pa.types.is_float16(known.type):  # which Arrow neither compares nor counts
        known = known.cast(pa.float32())
    if pa.types.is_floating(known.type):
        known = known.filter(pc.is_finite(known))
    is_plain = is_number(known.type) or is_text(known.type)
    numbers = pc.cast(known, pa.float64(), safe=False) if is_number(known.type) and len(known) else None
    extremes = _extremes(known) if is_plain and len(known) else (None, None)
    return ColumnReport(
        name=name,
        type=str(column.type),
        nulls=nulls,
        seen=len(known),
        distinct=pc.count_distinct(known).as_py() if is_plain else None,
        min=extremes[0],
        max=extremes[1],
        mean=None if numbers is None else _finite(pc.mean(numbers).as_py()),
        std=None if numbers is None else _finite(pc.stddev(numbers).as_py()),
        **lengths,
    )


def _extremes(values: pa.ChunkedArray) -> tuple[float | str, float | str]:
    """Text that is not UTF-8 is shown as far as it is."""
    if is_text(values.type):
        found = pc.min_max(values.cast(pa.large_binary())).as_py()
        return found["min"].decode("utf-8", "replace"), found["max"].decode("utf-8", "replace")
    found = pc.min_max(values).as_py()
    return float(found["min"]), float(found["max"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
