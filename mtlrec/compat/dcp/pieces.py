"""Shards cut into pieces before they are saved, so that DCP copies one piece at a time.

Upstream: `torch.distributed.checkpoint` writes a shard as one item. FBGEMM keeps a shard inside a larger buffer, and
DCP clones such a tensor before it writes it. A table that fills the machine leaves no room for that clone.
Seen in torch 2.13 and FBGEMM 1.8.
Delete when: DCP writes a view without cloning it, or cuts large items itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtlrec.compat.dcp.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata, reshard_like

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
    whole = ShardedTensorMetadata(everywhere, torch.Size(metadata.size), metadata.tensor_properties)
    return reshard_like(tensor, shards, whole)


def _cuts(shard: ShardMetadata, itemsize: int) -> list[tuple[int, ShardMetadata]]:
    """First row within the shard, and the piece."""
    rows, *others = shard.shard_sizes
    step = max(1, PIECE_BYTES // (itemsize * max(1, int(torch.Size(others).numel()))))
    offset, *beside = shard.shard_offsets
    return [
        (first, ShardMetadata([offset + first, *beside], [min(step, rows - first), *others], shard.placement))
        for first in range(0, rows, step)
    ]
