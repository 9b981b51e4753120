"""Shards cut into pieces before they are saved.

DCP writes and reads a shard as one item and holds a copy of it meanwhile (FBGEMM keeps a shard inside a larger buffer,
which DCP clones): of a table that fills the machine there is no room for one. Cut into pieces, it holds one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
from torch.distributed._shard.sharding_spec import ShardMetadata

PIECE_BYTES = 2**26


def in_pieces(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of tensors and ShardedTensors -> the same, ShardedTensors in more shards; memory is shared."""
    return {key: _pieces(value) for key, value in tree.items()}


def _pieces(value: Any) -> Any:
    if isinstance(value, Mapping):
        return in_pieces(value)
    return _cut(value) if isinstance(value, ShardedTensor) else value


def _cut(tensor: ShardedTensor) -> ShardedTensor:
    metadata = tensor.metadata()
    size = metadata.tensor_properties.dtype.itemsize
    shards = [
        Shard(shard.tensor.detach()[first : first + cut.shard_sizes[0]], cut)
        for shard in tensor.local_shards()
        for first, cut in _cuts(shard.metadata, size)
    ]
    everywhere = [cut for shard in metadata.shards_metadata for _, cut in _cuts(shard, size)]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards,
        ShardedTensorMetadata(everywhere, torch.Size(metadata.size), metadata.tensor_properties),
        process_group=tensor._process_group,
    )


def _cuts(shard: ShardMetadata, itemsize: int) -> list[tuple[int, ShardMetadata]]:
    """First row within the shard, and the piece."""
    rows, *others = shard.shard_sizes
    step = max(1, PIECE_BYTES // (itemsize * max(1, int(torch.Size(others).numel()))))
    offset, *beside = shard.shard_offsets
    return [
        (first, ShardMetadata([offset + first, *beside], [min(step, rows - first), *others], shard.placement))
        for first in range(0, rows, step)
    ]
