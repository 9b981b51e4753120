"""What the tables' optimizer keeps, in a form that every plan can load.

State of every entry (Adagrad, Adam) has the table's shape and is cut as the table is. State of a row (row-wise
Adagrad's mean of squared gradients) exists once for every *piece* of a row: a plan that cuts a table by columns makes
several, and TorchRec then strings them together, one name and size for every plan (also meta-pytorch/torchrec#2394).
Here it is [rows, pieces]. Loaded under other cuts, a piece takes the mean of those that it covers, by their widths:
the gradients' squares were added up in each, so this is what it would hold had the same gradients met this cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
from torch.distributed._shard.sharding_spec import ShardMetadata

from mtlrec.checkpoints.reader import load_tensors, saved_shapes

STATES = "optimizer.tables"
"""Stands before their names in a checkpoint."""

ColumnRanges = Sequence[tuple[int, int]]
"""First column and width of every piece of a row."""


def by_piece(state: ShardedTensor, table: ShardedTensor) -> ShardedTensor:
    """[rows * pieces] as TorchRec has it -> [rows, pieces], sharing memory; other shapes as they are."""
    if len(state.size()) != 1:
        return state
    columns = columns_of(table)
    piece = {first: index for index, (first, _) in enumerate(columns)}

    def placed(shard: ShardMetadata) -> ShardMetadata:
        row, column = shard.shard_offsets
        return ShardMetadata([row, piece[column]], [shard.shard_sizes[0], 1], shard.placement)

    shards = [
        Shard(values.tensor.view(-1, 1), placed(where.metadata))
        for values, where in zip(state.local_shards(), table.local_shards(), strict=True)
    ]
    metadata = ShardedTensorMetadata(
        shards_metadata=[placed(shard) for shard in table.metadata().shards_metadata],
        size=torch.Size([table.size()[0], len(columns)]),
        tensor_properties=state.metadata().tensor_properties,
    )
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, metadata, process_group=state._process_group
    )


def columns_of(table: Tensor) -> ColumnRanges:
    if not isinstance(table, ShardedTensor):
        return [(0, table.size()[1])]
    return sorted({(shard.shard_offsets[1], shard.shard_sizes[1]) for shard in table.metadata().shards_metadata})


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
