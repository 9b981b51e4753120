"""The tables' optimizer states under names and shapes that do not depend on the plan.

Upstream: the state of row-wise Adagrad depends on the plan in two ways (meta-pytorch/torchrec#2394).
- Its name: `<table>.momentum1` where FBGEMM's fused optimizer keeps it, `sum` where TorchRec's `RowWiseAdagrad` does,
  which a replicated table gets.
- Its shape: one value for each *piece* of a row. A plan that cuts a table by columns makes several pieces, and TorchRec
  strings them together as [rows * pieces]; `RowWiseAdagrad` has [rows, 1].
Here the name is always `momentum1` and the shape [rows, pieces]. Seen in TorchRec 1.8 and FBGEMM 1.8.
Delete when: both optimizers name the state alike and TorchRec's state has a dimension for the pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchrec.optim.keyed import KeyedOptimizer

from mtlrec.compat.dcp.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata, reshard_like

ColumnRanges = Sequence[tuple[int, int]]
"""First column and width of every piece of a row."""


def columns_of(table: Tensor) -> ColumnRanges:
    """The pieces that the plan cuts a row of `table` into."""
    if not isinstance(table, ShardedTensor):
        return [(0, table.size()[1])]
    return sorted({(shard.shard_offsets[1], shard.shard_sizes[1]) for shard in table.metadata().shards_metadata})


def fused_states(optimizer: KeyedOptimizer) -> dict[str, dict[str, Any]]:
    """The states of FBGEMM's fused optimizer by parameter, then by name; memory is shared."""
    return {
        str(parameter): {
            key.rpartition(".")[2]: split_pieces(tensor, optimizer.params[parameter]) for key, tensor in state.items()
        }
        for parameter, state in optimizer.state_dict()["state"].items()
    }


def replicated_states(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """The states of the replicated tables' torch optimizer, by parameter, under FBGEMM's name; memory is shared."""
    return {parameter: {"momentum1": state["sum"]} for parameter, state in states.items() if "sum" in state}


def split_pieces(state: ShardedTensor, table: ShardedTensor) -> ShardedTensor:
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
    return reshard_like(state, shards, metadata)
