"""A copy of what a checkpoint holds, so that it can be written while training goes on.

Upstream: `DefaultStager` of `torch.distributed.checkpoint.staging` keeps its host buffers from one checkpoint to the
next, but raises a RuntimeError on a ShardedTensor: it asks it for `data_ptr`. `BlockingAsyncStager` takes
ShardedTensors, but keeps its buffers only in pinned memory, which needs a GPU. Seen in torch 2.13.
Delete when: DefaultStager takes ShardedTensors, or TorchRec returns DTensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mtlrec.compat.dcp.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata, reshard_like


class Staging:
    """Copies into host memory that is kept from one checkpoint to the next: fresh pages would cost as much as writing.

    The copy is overwritten by the next one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def staged(self, tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Nested dicts of tensors and ShardedTensors, of which this rank's shards are copied -> the same on the CPU."""
        return {key: self._copied(value, f"{prefix}{key}") for key, value in tree.items()}

    def _copied(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return self.staged(value, f"{name}.")
        if isinstance(value, ShardedTensor):
            shards = [
                Shard(self._buffer(shard.tensor, f"{name}[{index}]"), _on_host(shard.metadata))
                for index, shard in enumerate(value.local_shards())
            ]
            return reshard_like(value, shards, on_host(value.metadata()))
        return self._buffer(value, name)

    def _buffer(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        kept = self._buffers.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[name] = kept
        kept.copy_(tensor.detach())
        return kept


def on_host(metadata: ShardedTensorMetadata) -> ShardedTensorMetadata:
    """The same shards in the ranks' host memory, pinned where they come from a GPU."""
    from_gpu = any("cuda" in str(shard.placement) for shard in metadata.shards_metadata)
    properties = replace(metadata.tensor_properties, pin_memory=from_gpu)
    shards = [_on_host(shard) for shard in metadata.shards_metadata]
    return ShardedTensorMetadata(shards, torch.Size(metadata.size), properties)


def _on_host(shard: ShardMetadata) -> ShardMetadata:
    assert shard.placement is not None
    return ShardMetadata(list(shard.shard_offsets), list(shard.shard_sizes), f"rank:{shard.placement.rank()}/cpu")
