"""ShardedTensor, from where torch keeps it.

Upstream: TorchRec gives a sharded table and its optimizer state as `ShardedTensor`s, which torch keeps in the private
package `torch.distributed._shard`. The public ways to make one gather the shards' metadata from all ranks; the private
`_init_from_local_shards_and_global_metadata` takes metadata that every rank knows and does not communicate.
Seen in torch 2.13 and TorchRec 1.8.
Delete when: TorchRec returns DTensors, or torch exports these names from a public module.
"""

from __future__ import annotations

from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata

__all__ = [
    "EnumerableShardingSpec",
    "Shard",
    "ShardMetadata",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "TensorProperties",
    "reshard_like",
]


def reshard_like(tensor: ShardedTensor, shards: list[Shard], metadata: ShardedTensorMetadata) -> ShardedTensor:
    """Make a ShardedTensor of this rank's `shards`, in the process group of `tensor`, without communication.

    Args:
        metadata: of all ranks' shards
    """
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, metadata, process_group=tensor._process_group
    )
