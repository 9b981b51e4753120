"""Some thousand rows as columns of numbers, shuffled once, of which batches are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import fbgemm_gpu  # noqa: F401  (registers the operator)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.data.labels import LabelColumns, TaskLabels, no_labels
from mtlrec.data.memory import copied


@dataclass(frozen=True)
class Ids:
    """A sparse feature's ids of N rows, one row after another.

    values: [M] of any integer type; lengths: [N] int32, or None where every row has one; weights: [M] float32, or None;
    is_narrow: whether all values fit into int32, half of what moves when they are shuffled
    """

    values: np.ndarray
    lengths: np.ndarray | None = None
    weights: np.ndarray | None = None
    is_narrow: bool = False
    offsets: np.ndarray | None = field(init=False)
    """[N + 1] int64, where lengths are."""

    def __post_init__(self) -> None:
        offsets = None if self.lengths is None else np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        object.__setattr__(self, "offsets", offsets)

    def span(self, start: int, stop: int) -> slice:
        """Where the ids of rows [start, stop) lie."""
        return slice(start, stop) if self.offsets is None else slice(self.offsets[start], self.offsets[stop])

    def take(self, row_indices: np.ndarray) -> Ids:
        """The ids of these rows, in their order."""
        narrow = np.int32 if self.is_narrow else np.int64
        if self.lengths is None:
            of_ids = None if self.weights is None else _take(self.weights, row_indices)
            return Ids(_take(copied(self.values, narrow), row_indices), None, of_ids, self.is_narrow)
        arrays = (row_indices, self.lengths, copied(self.values, narrow))
        weights = None if self.weights is None else torch.from_numpy(copied(self.weights, np.float32))
        moved = torch.ops.fbgemm.permute_1D_sparse_data(*map(torch.from_numpy, arrays), weights, None)
        return Ids(moved[1].numpy(), moved[0].numpy(), None if weights is None else moved[2].numpy(), self.is_narrow)

    def blank(self, bad_mask: np.ndarray) -> Ids:
        """The same rows without ids where `bad_mask` [N] is true."""
        lengths = np.ones(len(bad_mask), np.int32) if self.lengths is None else self.lengths
        kept = ~np.repeat(bad_mask, lengths)
        weights = None if self.weights is None else self.weights[kept]
        return Ids(self.values[kept], np.where(bad_mask, 0, lengths).astype(np.int32), weights, self.is_narrow)


@dataclass(frozen=True)
class Block:
    """N rows, column by column.

    dense: [N] float32 each; spaces: what `task_labels` are made with, None for rows to predict; row_mask: [N]
    float32, or None where all are 1; group_ids: [N] int64, or None. Rows that were left out, because of what
    `messages` say of files and columns, weigh nothing and have nothing in them. `table` has the rows as Arrow,
    where they are wanted too.
    """

    num_rows: int
    dense: Sequence[np.ndarray]
    labels: LabelColumns
    ids: Sequence[Ids]
    spaces: SampleSpaces | None = None
    group_ids: np.ndarray | None = None
    files: tuple[str, ...] = ()
    row_mask: np.ndarray | None = None
    messages: Mapping[tuple[str, str], str] = field(default_factory=dict)
    table: pa.Table | None = None

    def __len__(self) -> int:
        return self.num_rows

    @cached_property
    def task_labels(self) -> TaskLabels:
        """Made when the first batch is cut: of the labels in their final order, as there are more masks to move."""
        if self.spaces is None:
            return no_labels(self.num_rows)
        return self.spaces(self.labels, None if self.row_mask is None else self.row_mask > 0)

    def take(self, row_indices: np.ndarray) -> Block:
        """These rows, in their order."""
        rows = row_indices.astype(np.int32)
        return replace(
            self,
            num_rows=len(rows),
            dense=[_take(column, rows) for column in self.dense],
            labels=self.labels.take(lambda column: _take(column, rows)),
            ids=[one.take(rows) for one in self.ids],
            group_ids=None if self.group_ids is None else _take(self.group_ids, rows),
            row_mask=None if self.row_mask is None else _take(self.row_mask, rows),
            table=None if self.table is None else self.table.take(pa.array(rows)),
        )

    def blank(self, bad_mask: np.ndarray, messages: Mapping[tuple[str, str], str]) -> Block:
        """The same rows; those where `bad_mask` [N] is true weigh nothing and have nothing in them."""
        kept = (~bad_mask).astype(np.float32)
        return replace(
            self,
            dense=[np.where(bad_mask, np.float32(0), column) for column in self.dense],
            labels=self.labels.blank(bad_mask),
            row_mask=kept,
            ids=[one.blank(bad_mask) for one in self.ids],
            messages=messages,
        )


def _take(column: np.ndarray, row_indices: np.ndarray) -> np.ndarray:
    """By Arrow, whose pool has memory at hand where NumPy's would be fresh: twice as fast on a block."""
    return np.asarray(pc.take(pa.array(column), pa.array(row_indices), boundscheck=False))
