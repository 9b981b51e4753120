"""Loading what the tables' optimizer keeps under a plan that cuts tables by other columns.

State of every entry (Adagrad, Adam) has the table's shape and is cut as the table is: DCP reshards it. State of a row
(row-wise Adagrad's mean of squared gradients) exists once for every *piece* of a row and is saved as [rows, pieces]
(`compat/fbgemm/optimizer_states.py`). Loaded under other cuts, a piece takes the mean of those that it covers, by their
widths: the gradients' squares were added up in each, so this is what it would hold had the same gradients met this cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlrec.checkpoints.reader import load_tensors, saved_shapes
from mtlrec.compat.dcp.sharded_tensor import ShardedTensor
from mtlrec.compat.fbgemm.optimizer_states import ColumnRanges

STATES = "optimizer.tables"
"""Stands before their names in a checkpoint."""


@dataclass
class OtherCut:
    """A state that was saved in other pieces than those of `target`."""

    name: str
    target: ShardedTensor | Tensor
    columns: ColumnRanges
    saved_columns: ColumnRanges

    def load(self, checkpoint: Path) -> None:
        """Collective. Reads the whole state, on every rank."""
        saved = torch.empty(self.target.size()[0], len(self.saved_columns))
        load_tensors({self.name: saved}, checkpoint)
        mixed = saved @ mixing(self.saved_columns, self.columns).to(saved.dtype)
        if isinstance(self.target, ShardedTensor):
            for shard in self.target.local_shards():
                (row, piece), (rows, _) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.copy_(mixed[row : row + rows, piece : piece + 1])
        else:
            self.target.detach().copy_(mixed)


def take_other_cuts(
    states: dict[str, dict[str, Any]], columns: Mapping[str, tuple[ColumnRanges, ColumnRanges]], checkpoint: Path
) -> list[OtherCut]:
    """Takes out of `states` (by parameter, then by name) what the checkpoint holds in other pieces.

    Args:
        columns: by parameter, the pieces of the job's plan and those of the checkpoint's
    """
    shapes, found = saved_shapes(checkpoint), []
    for parameter, state in states.items():
        now, before = columns.get(parameter, ([], []))  # a table that the checkpoint has not: loading says so
        for key in list(state):
            name = f"{STATES}.{parameter}.{key}"
            rows, pieces = state[key].size()
            of_rows = pieces == len(now) and shapes.get(name) == (rows, len(before))
            if of_rows and _width(now) == _width(before) and list(now) != list(before):
                found.append(OtherCut(name, state.pop(key), now, before))
    return found


def _width(columns: ColumnRanges) -> int:
    return sum(width for _, width in columns)


def mixing(before: ColumnRanges, after: ColumnRanges) -> Tensor:
    """[pieces before, pieces after]: how much of a piece after lies in a piece before."""
    share = torch.zeros(len(before), len(after), dtype=torch.float64)
    for i, (first, width) in enumerate(before):
        for j, (start, length) in enumerate(after):
            share[i, j] = max(0, min(first + width, start + length) - max(first, start)) / length
    return share
