"""TorchRec still gives tables as ShardedTensors, and torch still keeps these private."""

import torch
import torch.distributed as dist

from mtlrec.compat.dcp.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata, reshard_like
from mtlrec.distributed.process_group import process_group
from mtlrec.training.sharded import build_sharded
from tests.support.toy import toy_job


def test_tables_are_sharded_tensors_of_a_private_package() -> None:
    with process_group("cpu") as ranks:
        state = build_sharded(toy_job(), ranks).module.state_dict()
    tables = [tensor for name, tensor in state.items() if ".embedding_bags." in name]
    assert tables
    assert all(type(table) is ShardedTensor for table in tables), "compat/dcp/sharded_tensor.py can be deleted"
    public = [module for module in (torch, dist, dist.tensor) if hasattr(module, "ShardedTensor")]
    assert not public, f"compat/dcp/sharded_tensor.py can be deleted: import ShardedTensor from {public}"


def test_other_shards_take_the_same_memory() -> None:
    with process_group("cpu") as ranks:
        state = build_sharded(toy_job(), ranks).module.state_dict()
        table = next(tensor for name, tensor in state.items() if ".embedding_bags." in name)
        rows, columns = table.size()
        halves = [
            ShardMetadata([first, 0], [rows // 2, columns], table.metadata().shards_metadata[0].placement)
            for first in (0, rows // 2)
        ]
        whole = table.local_shards()[0].tensor
        shards = [Shard(half, cut) for half, cut in zip(whole.split(rows // 2), halves, strict=True)]
        metadata = ShardedTensorMetadata(halves, torch.Size([rows, columns]), table.metadata().tensor_properties)
        resharded = reshard_like(table, shards, metadata)
        whole.fill_(3)
        assert [shard.tensor.unique().tolist() for shard in resharded.local_shards()] == [[3], [3]]
