"""A job to start from, guessed by the names and values of columns: to be read and changed, not believed.

A column that may be an outcome (a watch time, a count of likes) is no feature unless somebody says so: a model that
reads the answer looks splendid until it serves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from mtlrec.config.base import without_secrets
from mtlrec.data.profiling.inspect import ColumnReport, Report
from mtlrec.data.sources.files import split_root

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
MEASURES = re.compile(r"count|num|price|amount|cost|duration|age|ratio|rate|score|value|_ms$|_s$|seconds|length", re.I)
OUTCOMES = re.compile(
    r"click|like|share|follow|comment|forward|buy|purchase|conver|label|long_view|watch|finish|pay|cart", re.I
)
DAYS = re.compile(r"date|day|dt|ds", re.I)
DIM_OF = ((100, 8), (10_000, 16), (1_000_000, 32))
KEY_FROM = 1000
"""Rows of a sample from which on a column without a repeated value is a key."""


@dataclass(frozen=True)
class Proposal:
    """The tree of a job (valid where a task was found), the columns that are in none of its parts, and those of them
    that may be outcomes."""

    tree: dict[str, Any]
    left_out: list[str]
    outcomes: list[str]


def propose(report: Report, path: str, name: str) -> Proposal:
    root, pattern = split_root(path)
    dense, sparse, tasks = [], list[dict[str, Any]](), list[dict[str, Any]]()
    keys, left, outcomes = list[str](), list[str](), list[str]()
    columns = {column.name: column for column in report.columns}
    for column in report.columns:
        is_constant = column.distinct is None or column.distinct < 2
        if is_constant or not IDENTIFIER.fullmatch(column.name) or _is_day(column, report):
            left.append(column.name)
        elif _is_list_of_measures(column):
            if _ids_of(column, columns) is None:
                left.append(column.name)
        elif _is_flag(column) and (OUTCOMES.search(column.name) or column.name.startswith("is_")):
            tasks.append({"name": re.sub("^is_", "", column.name), "label": column.name})
        elif column.max_length is None and OUTCOMES.search(column.name):
            outcomes.append(column.name)
        elif _is_key(column):
            keys.append(column.name)
        elif column.max_length is None and _is_measure(column):
            dense.append({"name": column.name} | _dense_transform(column))
        else:
            rows, transform = _table(column)
            table = {"rows": rows, "dim": next((dim for most, dim in DIM_OF if rows <= most), 64)}
            lists = {} if column.max_length is None else {"pooling": "mean", "max_length": max(column.max_length, 1)}
            sparse.append({"name": column.name} | table | transform | lists)
    for column in report.columns:
        ids = _ids_of(column, columns)
        for feature in sparse:
            if ids is not None and feature["name"] == ids:
                feature["weights"] = column.name
    tree = {
        "name": re.sub(r"^(?=\d)|[^A-Za-z0-9_]+", "_", name),
        "data": {"root": without_secrets(root), **_splits(pattern, report)} | ({"keys": keys} if keys else {}),
        "features": {"dense": dense, "sparse": sparse},
        "tasks": tasks,
        "model": {"fusion": {"kind": "mmoe", "expert_hidden": [[128, 64]], "num_experts": 4}},
    }
    return Proposal(tree, left, outcomes)


def _splits(pattern: str, report: Report) -> dict[str, list[str]]:
    """By day where folders are days: the last to test, the one before it to valid."""
    day = next((column for column in report.partitions if DAYS.fullmatch(column)), "")
    values = report.partitions.get(day, [])
    if len(values) >= 3 and pattern.startswith(f"{day}=") and "/" not in pattern:
        *train, valid, test = (f"{day}={value}" for value in values)
    elif len(values) >= 3 and not re.search(r"[*?\[]", pattern):
        *train, valid, test = (f"{pattern}/**/{day}={value}" for value in values)
    else:
        return {"train": [pattern], "valid": [], "test": []}
    return {"train": train, "valid": [valid], "test": [test]}


def _is_day(column: ColumnReport, report: Report) -> bool:
    return column.name in report.partitions and DAYS.fullmatch(column.name) is not None


def _is_flag(column: ColumnReport) -> bool:
    return column.max_length is None and (column.min, column.max) == (0.0, 1.0) and column.distinct == 2


def _is_key(column: ColumnReport) -> bool:
    is_real = column.type.startswith(("float", "double", "decimal", "halffloat"))
    return column.max_length is None and not is_real and column.distinct == column.seen >= KEY_FROM


def _is_measure(column: ColumnReport) -> bool:
    if column.type == "bool":
        return True
    is_whole = column.type.startswith(("int", "uint", "dictionary")) or isinstance(column.min, str)
    return not is_whole or (not isinstance(column.min, str) and bool(MEASURES.search(column.name)))


def _is_list_of_measures(column: ColumnReport) -> bool:
    return column.max_length is not None and re.search("float|double|decimal", column.type) is not None


def _ids_of(column: ColumnReport, columns: dict[str, ColumnReport]) -> str | None:
    """The lists whose weights these are, by its name (`tag_weights` of `tag` or `tags`) and lengths."""
    stem = re.sub(r"_?(weight|score)s?$", "", column.name)
    if stem == column.name or not _is_list_of_measures(column):
        return None
    for name in (stem, f"{stem}s"):
        ids = columns.get(name)
        if ids and (ids.mean_length, ids.max_length) == (column.mean_length, column.max_length):
            return name
    return None


def _dense_transform(column: ColumnReport) -> dict[str, Any]:
    low, high, mean = (value if isinstance(value, float) else 0.0 for value in (column.min, column.max, column.mean))
    if low >= 0 and high > 20 * max(mean, 1e-9):
        return {"transform": "log1p"}
    if max(abs(low), abs(high)) > 10 and column.std:
        return {"transform": "standardize", "mean": float(f"{mean:.6g}"), "std": float(f"{column.std:.6g}")}
    return {}


def _table(column: ColumnReport) -> tuple[int, dict[str, str]]:
    """WindowTable, and the transform that makes ids of the values."""
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
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
        return text.removesuffix("\n").removesuffix("\n...")

    lines = ["# A guess by names and values: read it, and change what is wrong. Table rows, means and"]
    lines += ["# deviations are the sample's; `mtlrec prepare stats` finds these of all rows, where they are left out."]
    lines += [f"name: {flow(tree['name'])}", f"data: {flow(tree['data'])}"]
    if not tree["data"]["valid"]:
        lines.append("# nothing is evaluated: give data.valid and data.test files of their own")
    lines.append("features:")
    for section in ("dense", "sparse"):
        lines.append(f"  {section}:" if tree["features"][section] else f"  {section}: []")
        lines += [f"    - {flow(feature)}" for feature in tree["features"][section]]
    lines.append("tasks:")
    lines += [f"  - {flow(task)}" for task in tree["tasks"]] or ["  # no 0/1 column with a name like a label: name one"]
    lines.append(f"model: {flow(tree['model'])}")
    if proposal.outcomes:
        lines.append(f"# may be outcomes, so no features: {', '.join(proposal.outcomes)}; as tasks, or as features if")
        lines.append("# they are known before the impression")
    if proposal.left_out:
        lines.append(f"# in none of these: {', '.join(proposal.left_out)}")
    return "\n".join(lines)
