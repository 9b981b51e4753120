"""What rows are to each task: targets and spaces, as columns that blocks hold and batches are cut from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Columns = Sequence[np.ndarray]
MaybeColumns = Sequence[np.ndarray | None]
"""None stands for a column that is the same in every row: most are, and cost nothing then."""


@dataclass(frozen=True)
class TaskLabels:
    """Of N rows and T tasks, one column of [N] per task. Rows to predict have no tasks.

    Attributes:
        targets: float32
        in_space, entire_space: bool; None: every row. Both may be one object
        weights: float32; None: 1
        inconsistent, missing: bool, the label faults of `Batch`; None: no row
    """

    targets: Columns = ()
    in_space: MaybeColumns = ()
    entire_space: MaybeColumns = ()
    weights: MaybeColumns = ()
    inconsistent: MaybeColumns = ()
    missing: MaybeColumns = ()

    def take(self, take: Callable[[np.ndarray], np.ndarray]) -> TaskLabels:
        """`take` of every column, once of those that several tasks share."""
        taken: dict[int, np.ndarray] = {}

        def one(column: np.ndarray) -> np.ndarray:
            if id(column) not in taken:
                is_mask = column.dtype == np.bool_
                taken[id(column)] = take(column.view(np.uint8)).view(np.bool_) if is_mask else take(column)
            return taken[id(column)]

        def each(columns: MaybeColumns) -> list[np.ndarray | None]:
            return [None if column is None else one(column) for column in columns]

        in_space = each(self.in_space)
        return TaskLabels(
            targets=[one(column) for column in self.targets],
            in_space=in_space,
            entire_space=in_space if self.entire_space is self.in_space else each(self.entire_space),
            weights=each(self.weights),
            inconsistent=each(self.inconsistent),
            missing=each(self.missing),
        )

    def blank(self, bad_mask: np.ndarray) -> TaskLabels:
        """The same rows; those where `bad_mask` [N] is true are in no space and weigh nothing."""
        kept = ~bad_mask
        weights = kept.astype(np.float32)

        def kept_of(columns: MaybeColumns) -> list[np.ndarray | None]:
            return [kept if column is None else kept & column for column in columns]

        def faults_of(columns: MaybeColumns) -> list[np.ndarray | None]:
            return [None if column is None else kept & column for column in columns]

        return replace(
            self,
            targets=[np.where(kept, column, np.float32(0)) for column in self.targets],
            in_space=kept_of(self.in_space),
            entire_space=kept_of(self.entire_space),
            weights=[weights if column is None else np.where(kept, column, np.float32(0)) for column in self.weights],
            inconsistent=faults_of(self.inconsistent),
            missing=faults_of(self.missing),
        )

    def faults(self, start: int, stop: int) -> np.ndarray:
        """[2, T] int64: how many of the rows [start, stop) are inconsistent, and how many missing."""
        counts = np.zeros((2, len(self.targets)), np.int64)
        for kind, columns in enumerate((self.inconsistent, self.missing)):
            for task, column in enumerate(columns):
                if column is not None:
                    counts[kind, task] = np.count_nonzero(column[start:stop])
        return counts
