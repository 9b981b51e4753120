"""Labels as files have them, and what they make of each row to each task. Columns that batches are cut from.

N rows, C label columns, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Mask = np.ndarray | None
"""[N] bool, or None: every row."""


@dataclass(frozen=True)
class LabelColumns:
    """values: [N] float32 each, 0 where unknown; known: [N] bool each, or None where all are."""

    values: Sequence[np.ndarray] = ()
    known: Sequence[Mask] = ()

    def take(self, take: Callable[[np.ndarray], np.ndarray]) -> LabelColumns:
        """`take` of every column."""
        masks = [None if mask is None else take(mask.view(np.uint8)).view(np.bool_) for mask in self.known]
        return LabelColumns([take(column) for column in self.values], masks)

    def blank(self, bad_mask: np.ndarray) -> LabelColumns:
        """The same rows; nothing is known of those where `bad_mask` [N] is true."""
        kept = ~bad_mask
        values = [np.where(kept, column, np.float32(0)) for column in self.values]
        return LabelColumns(values, [kept if mask is None else kept & mask for mask in self.known])


@dataclass(frozen=True)
class TaskLabels:
    """[T, N] each, as `Batch` has them: batches are views of these.

    Attributes:
        targets: float32
        in_space, entire_space: bool; one array where they are equal
        weights: float32
        inconsistent, missing: bool, the label faults; None: no row has one
    """

    targets: np.ndarray
    in_space: np.ndarray
    entire_space: np.ndarray
    weights: np.ndarray
    inconsistent: np.ndarray | None
    missing: np.ndarray | None

    @property
    def has_faults(self) -> bool:
        return self.inconsistent is not None or self.missing is not None

    def faults(self, start: int, stop: int) -> np.ndarray:
        """[2, T] int64: how many of the rows [start, stop) are inconsistent, and how many missing."""
        counts = np.zeros((2, len(self.targets)), np.int64)
        for kind, rows in enumerate((self.inconsistent, self.missing)):
            if rows is not None:
                counts[kind] = np.count_nonzero(rows[:, start:stop], axis=1)
        return counts


def no_labels(rows: int) -> TaskLabels:
    """Of rows to predict: there is no task."""
    numbers, masks = np.empty((0, rows), np.float32), np.empty((0, rows), np.bool_)
    return TaskLabels(numbers, masks, masks, numbers, None, None)
