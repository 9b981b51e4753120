"""From label columns to targets and sample spaces: which rows each task's loss, and its metrics, may see.

N rows, T tasks, C label columns. One computation serves the loss and the metrics: what the loss masks, the metric
masks. A mask that is true everywhere is None until the end, and nothing is computed with it: most are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mtlrec.config import JobConfig
from mtlrec.config.expression import renamed
from mtlrec.data.features.conditions import Condition, rows_where
from mtlrec.data.labels import LabelColumns, Mask, TaskLabels
from mtlrec.data.memory import empty
from mtlrec.heads.funnel import topological_order


@dataclass(frozen=True)
class SampleSpaces:
    """Label columns to targets and spaces per task.

    A child's target is child AND parent: a funnel's labels are made consistent first, and the rows that this changed
    are counted. Where the parent is known to be 0, the child is known to be 0, even if its own label is missing.

    Args:
        labels: index of each task's label column
        parents: index of the task each one follows, or None; both are then 0 or 1
        conditions: of each task, which rows belong to it (see `conditions.py`; a source is `("task", index)`, whose
            consistent target counts, or `("column", index)`), or None. A child's rows are among its parent's.
        is_conditional: whether a child is trained where its parent is 1 only, or on the root's space
        row_weights: index of each task's column of row weights, or None. A row without a weight is not in the space.
        is_flag: whether each task's label is 0 or 1; another number is 0 outside its space, where it may be anything
    """

    labels: Sequence[int]
    parents: Sequence[int | None]
    conditions: Sequence[Condition | None]
    is_conditional: bool
    row_weights: Sequence[int | None]
    is_flag: Sequence[bool]

    @staticmethod
    def of(job: JobConfig) -> SampleSpaces:
        columns, names = list(job.label_columns), [task.name for task in job.tasks]

        def source(name: str) -> tuple[str, int]:
            return ("task", names.index(name)) if name in names else ("column", columns.index(name))

        weights = [task.sample_weight for task in job.tasks]
        return SampleSpaces(
            labels=[columns.index(task.label) for task in job.tasks],
            parents=[None if task.given is None else names.index(task.given) for task in job.tasks],
            conditions=[None if task.condition is None else renamed(task.condition, source) for task in job.tasks],
            is_conditional=job.is_conditional,
            row_weights=[None if column is None else columns.index(column) for column in weights],
            is_flag=[task.is_binary for task in job.tasks],
        )

    def __call__(self, columns: LabelColumns, kept: Mask = None) -> TaskLabels:
        """`kept`: rows that count; the columns know nothing of the others. Both spaces are one array under
        `is_conditional=False`, and equal for a root."""
        rows = _Rows(self, columns, kept)
        order = topological_order(self.parents)
        for task in order:  # a condition may read any task's target
            rows.make_consistent(task)
        for task in order:
            rows.find_spaces(task)
        return rows.labels()


class _Rows:
    """The rows' columns by task, as far as they have been computed."""

    def __init__(self, spaces: SampleSpaces, columns: LabelColumns, kept: Mask) -> None:
        self.spaces, self.columns, self.kept = spaces, columns, kept
        self.targets: dict[int, np.ndarray] = {}
        self.known: dict[int, Mask] = {}
        self.is_one: dict[int, np.ndarray] = {}
        self.broken: dict[int, np.ndarray] = {}
        self.inherited: dict[int, Mask] = {}
        self.entire: dict[int, Mask] = {}
        self.space: dict[int, Mask] = {}
        self.missing: dict[int, np.ndarray] = {}

    def make_consistent(self, task: int) -> None:
        """The target, and where it is known; of a child also where its own label broke the funnel."""
        label, own = self._label(task)
        parent = self.spaces.parents[task]
        self.targets[task], self.known[task] = label, own
        if parent is not None:
            above = self.targets[parent]
            broken = label > above
            if broken.any():
                self.broken[task], self.targets[task] = broken, label * above
            self.known[task] = _known_child(label, own, above, self.known[parent])

    def find_spaces(self, task: int) -> None:
        parent, weights = self.spaces.parents[task], self._weights(task)
        inherited = None if parent is None else self.inherited[parent]
        condition = self.spaces.conditions[task]
        if condition is not None:
            inherited = _and(inherited, rows_where(condition, self._read))
        known = self.known[task]
        if parent is not None and known is not None:
            self.missing[task] = _within(inherited, self._is_one(parent) & ~known)
        self.inherited[task] = _and(inherited, known)
        self.entire[task] = _and(self.inherited[task], None if weights is None else weights > 0)
        self.space[task] = self.entire[task]
        if parent is not None and self.spaces.is_conditional:
            own = self._label(task)[1]
            self.space[task] = _and(_and(self.entire[task], own), self._is_one(parent))

    def labels(self) -> TaskLabels:
        tasks, size = range(len(self.spaces.labels)), len(self.columns.values[0])
        in_space = _stacked([self.space[task] for task in tasks], size, np.bool_)
        entire = in_space
        if self.spaces.is_conditional:
            entire = _stacked([self.entire[task] for task in tasks], size, np.bool_)
        broken = {task: _within(self.entire[task], rows) for task, rows in self.broken.items()}
        return TaskLabels(
            targets=_stacked([self._target(task) for task in tasks], size, np.float32),
            in_space=in_space,
            entire_space=entire,
            weights=_stacked([self._row_weights(task) for task in tasks], size, np.float32),
            inconsistent=self._faults(broken),
            missing=self._faults(self.missing),
        )

    def _faults(self, rows: Mapping[int, np.ndarray]) -> np.ndarray | None:
        """[T, N] of those tasks that have any, or None."""
        if not rows:
            return None
        nowhere = np.zeros(len(self.columns.values[0]), bool)
        return np.stack([rows.get(task, nowhere) for task in range(len(self.spaces.labels))])

    def _target(self, task: int) -> np.ndarray:
        target, space = self.targets[task], self.space[task]
        if self.spaces.is_flag[task] or space is None:
            return target
        return np.where(space, target, np.float32(0))

    def _label(self, task: int) -> tuple[np.ndarray, Mask]:
        column = self.spaces.labels[task]
        return self.columns.values[column], self.columns.known[column]

    def _weights(self, task: int) -> np.ndarray | None:
        """Of its column: 0 where unknown, as all unknown values are."""
        column = self.spaces.row_weights[task]
        return None if column is None else self.columns.values[column]

    def _row_weights(self, task: int) -> np.ndarray | None:
        weights = self._weights(task)
        if weights is None and self.kept is not None:
            return self.kept.astype(np.float32)
        return weights

    def _is_one(self, task: int) -> np.ndarray:
        if task not in self.is_one:
            self.is_one[task] = self.targets[task] != 0
        return self.is_one[task]

    def _read(self, source: tuple[str, int]) -> tuple[np.ndarray, Mask]:
        kind, index = source
        if kind == "task":
            return self.targets[index], self.known[index]
        return self.columns.values[index], self.columns.known[index]


def _stacked(columns: Sequence[np.ndarray | None], size: int, dtype: type[np.generic]) -> np.ndarray:
    """[T, N]; 1 where a task has no column."""
    if all(column is None for column in columns):
        return _ones(len(columns), size, np.dtype(dtype))
    stacked = empty(len(columns) * size, dtype).reshape(len(columns), size)
    for row, column in zip(stacked, columns, strict=True):
        row[:] = 1 if column is None else column
    return stacked


@lru_cache(maxsize=8)
def _ones(tasks: int, size: int, dtype: np.dtype[Any]) -> np.ndarray:
    """One array for all blocks of this size: nobody writes to a batch, and fresh memory costs more than the ones."""
    return np.ones((tasks, size), dtype)


def _known_child(label: np.ndarray, own: Mask, above: np.ndarray, above_known: Mask) -> Mask:
    """Where both are known, or one is known to be 0."""
    if above_known is None:
        return None if own is None else own | (above == 0)
    if own is None:
        return above_known | (label == 0)
    return own & (above_known | (label == 0)) | above_known & (above == 0)


def _and(one: Mask, other: Mask) -> Mask:
    return one if other is None else _within(one, other)


def _within(mask: Mask, rows: np.ndarray) -> np.ndarray:
    return rows if mask is None else mask & rows
