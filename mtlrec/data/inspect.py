"""What is in a set of Parquet files, and a job to start from.

Rows, types and nulls are read from the footers, and so are exact; the rest is counted in a sample: the first rows of
row groups spread over the files. The job is a guess by names and values, to be read and changed, not believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from mtlrec.config.base import without_secrets
from mtlrec.data.dataset import Dataset, is_number, is_text, list_row_groups, plain
from mtlrec.data.files import above_partitions, store_of
from mtlrec.data.parquet import RowGroupReader, stacked

SAMPLED_GROUPS, SAMPLED_ROWS = 16, 20_000
GLOB = re.compile(r"[*?\[]")
MEASURES = re.compile(r"count|num|price|amount|cost|duration|age|ratio|rate|score|value|_ms$|_s$|seconds|length", re.I)
OUTCOMES = re.compile(
    r"click|like|share|follow|comment|forward|buy|purchase|conver|label|long_view|watch|finish|pay|cart", re.I
)
DIM_OF = ((100, 8), (10_000, 16), (1_000_000, 32))


@dataclass(frozen=True)
class ColumnReport:
    """Of one column. `nulls` is exact, or None where a footer does not say; the rest is the sample's, of `seen` values
    that are not null: `distinct` values (of a list's items), extremes, the mean, and of lists the lengths."""

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
class Proposal:
    """The tree of a job (valid where a task was found), the columns that are in none of its parts, and the features
    that may be outcomes, which leak the answer."""

    tree: dict[str, Any]
    left_out: list[str]
    doubtful: list[str]


@dataclass(frozen=True)
class Report:
    files: int
    row_groups: int
    rows: int
    bytes: int
    sampled_rows: int
    columns: list[ColumnReport]


def split_root(path: str) -> tuple[str, str]:
    """A path, glob or URI -> the root, which has no wildcards and no `key=value`, and the pattern below it."""
    address, query = path.partition("?")[::2] if "://" in path else (path, "")
    parts = address.rstrip("/").split("/")
    first = next((index for index, part in enumerate(parts) if GLOB.search(part)), len(parts) - 1)
    first = max(first, 3) if "://" in address else first  # scheme and host stay together
    root, folders = above_partitions("/".join(parts[:first]) or ("/" if address.startswith("/") else "."))
    return root + (f"?{query}" if query else ""), "/".join(([folders] if folders else []) + parts[first:]) or "."


def inspect(path: str) -> Report:
    """Raises DataError where nothing is there or a file cannot be read."""
    root, pattern = split_root(path)
    dataset = list_row_groups(root, [pattern], {})
    sample = _sample(dataset)
    nulls = _nulls(dataset)
    return Report(
        files=len(dataset.files),
        row_groups=len(dataset.groups),
        rows=dataset.rows,
        bytes=sum(file.size for file in dataset.files),
        sampled_rows=sample.num_rows,
        columns=[_column(name, sample[name], nulls.get(name)) for name in sample.column_names],
    )


def _sample(dataset: Dataset) -> pa.Table:
    chosen = np.unique(np.linspace(0, len(dataset.groups) - 1, SAMPLED_GROUPS).astype(int)).tolist()
    few = Dataset(dataset.root, tuple(dataset.groups[index] for index in chosen), dataset.partition_types)
    reader = RowGroupReader(few, None)
    tables = [reader.first_rows(index, SAMPLED_ROWS) for index in range(len(few.groups))]
    return stacked(tables)


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


def _column(name: str, column: pa.ChunkedArray, nulls: int | None) -> ColumnReport:
    kind = plain(column.type)
    lengths: dict[str, Any] = {}
    values = column
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        counts = pc.fill_null(pc.list_value_length(column), 0)
        lengths = {"mean_length": pc.mean(counts).as_py(), "max_length": pc.max(counts).as_py()}
        values = pc.list_flatten(column)
    known = values.drop_null().cast(plain(values.type))
    is_plain = is_number(known.type) or is_text(plain(known.type))
    numbers = pc.cast(known, pa.float64(), safe=False) if is_number(known.type) and len(known) else None
    extremes = pc.min_max(known).as_py() if is_plain and len(known) and not pa.types.is_dictionary(known.type) else {}
    return ColumnReport(
        name=name,
        type=str(column.type),
        nulls=nulls,
        seen=len(known),
        distinct=pc.count_distinct(known).as_py() if is_plain else None,
        min=_shown(extremes.get("min")),
        max=_shown(extremes.get("max")),
        mean=None if numbers is None else pc.mean(numbers).as_py(),
        std=None if numbers is None else pc.stddev(numbers).as_py(),
        **lengths,
    )


def _shown(value: Any) -> float | str | None:
    return value if value is None or isinstance(value, str) else float(value)


# ---- a job to start from


def propose(report: Report, path: str, name: str) -> Proposal:
    root, pattern = split_root(path)
    tables: dict[str, Any] = {}
    dense, sparse, tasks, left = [], [], list[dict[str, Any]](), list[str]()
    for column in report.columns:
        if not re.fullmatch(r"[A-Za-z_]\w*", column.name) or column.distinct is None or column.distinct < 2:
            left.append(column.name)
        elif column.max_length is not None and re.search("float|double|decimal", column.type):
            left.append(column.name)  # weights of another list's ids, it may be
        elif _is_flag(column) and (OUTCOMES.search(column.name) or column.name.startswith("is_")):
            tasks.append({"name": re.sub("^is_", "", column.name), "label": column.name})
        elif column.max_length is None and _is_measure(column):
            dense.append({"name": column.name} | _dense_transform(column))
        else:
            rows, transform = _table(column)
            tables[column.name] = {"rows": rows, "dim": next((dim for most, dim in DIM_OF if rows <= most), 64)}
            lists = {} if column.max_length is None else {"pooling": "mean", "max_length": max(column.max_length, 1)}
            sparse.append({"name": column.name, "table": column.name} | transform | lists)
    tree = {
        "name": name,
        "data": {"root": without_secrets(root), "train": [pattern], "valid": [], "test": []},
        "tables": tables,
        "features": {"dense": dense, "sparse": sparse},
        "tasks": tasks,
        "model": {"fusion": {"kind": "mmoe", "expert_hidden": [[128, 64]], "num_experts": 4}},
    }
    doubtful = [
        column.name
        for column in report.columns
        if column.name in {feature["name"] for feature in (*dense, *sparse)}
        and (_is_flag(column) or (column.max_length is None and OUTCOMES.search(column.name)))
    ]
    return Proposal(tree, left, doubtful)


def _is_flag(column: ColumnReport) -> bool:
    return column.max_length is None and (column.min, column.max) == (0.0, 1.0) and column.distinct == 2


def _is_measure(column: ColumnReport) -> bool:
    is_whole = column.type.startswith(("int", "uint", "bool", "dictionary")) or isinstance(column.min, str)
    return not is_whole or (not isinstance(column.min, str) and bool(MEASURES.search(column.name)))


def _dense_transform(column: ColumnReport) -> dict[str, Any]:
    low, high, mean = (value if isinstance(value, float) else 0.0 for value in (column.min, column.max, column.mean))
    if low >= 0 and high > 20 * max(mean, 1e-9):
        return {"transform": "log1p"}
    if max(abs(low), abs(high)) > 10 and column.std:
        return {"transform": "standardise", "mean": float(f"{mean:.6g}"), "std": float(f"{column.std:.6g}")}
    return {}


def _table(column: ColumnReport) -> tuple[int, dict[str, str]]:
    """Rows, and the transform that makes ids of the values."""
    distinct = column.distinct or 1
    if isinstance(column.min, float) and isinstance(column.max, float) and column.min >= 0:
        rows = int(column.max) + 1
        if rows <= max(20 * distinct, 1000):
            return rows, {}
    return 2 ** int(np.ceil(np.log2(2 * distinct))), {"transform": "hash"}


def render(proposal: Proposal) -> str:
    """The job as YAML, one feature to a line."""
    tree = proposal.tree

    def flow(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()

    lines = ["# A guess by names and values: read it, and change what is wrong. Table rows, means and"]
    lines += ["# deviations are the sample's; `mtlrec prepare stats` finds these of all rows, where they are left out."]
    lines += [f"name: {tree['name']}", f"data: {flow(tree['data'])}", "tables:"]
    lines += [f"  {name}: {flow(table)}" for name, table in tree["tables"].items()]
    lines.append("features:")
    for section in ("dense", "sparse"):
        lines.append(f"  {section}:" if tree["features"][section] else f"  {section}: []")
        lines += [f"    - {flow(feature)}" for feature in tree["features"][section]]
    lines.append("tasks:")
    lines += [f"  - {flow(task)}" for task in tree["tasks"]] or ["  # no 0/1 column with a name like a label: name one"]
    lines.append(f"model: {flow(tree['model'])}")
    if proposal.doubtful:
        lines.append(f"# features that may be outcomes, and then are labels or nothing: {', '.join(proposal.doubtful)}")
    if proposal.left_out:
        lines.append(f"# in none of these: {', '.join(proposal.left_out)}")
    return "\n".join(lines)
