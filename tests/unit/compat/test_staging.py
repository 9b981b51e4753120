"""DCP's stagers still cannot keep a copy of a ShardedTensor in host memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.staging import BlockingAsyncStager, DefaultStager, StagingOptions

from mtlrec.compat.sharded_tensor import ShardedTensor
from mtlrec.compat.staging import Staging
from mtlrec.distributed.process_group import process_group
from mtlrec.training.sharded import build_sharded
from tests.support.toy import toy_job


@pytest.fixture
def tables() -> Iterator[dict[str, ShardedTensor]]:
    with process_group("cpu") as ranks:
        state = build_sharded(toy_job(), ranks).module.state_dict()
        yield {name: tensor for name, tensor in state.items() if ".tables." in name}


@pytest.mark.parametrize("share_memory", [False, True], ids=["own memory", "shared memory"])
def test_the_default_stager_takes_no_sharded_tensors(tables: dict[str, ShardedTensor], share_memory: bool) -> None:
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=share_memory, use_async_staging=False, use_non_blocking_copy=False
    )
    with pytest.raises(RuntimeError) as raised:
        DefaultStager(options).stage(tables)
    assert "data_ptr" in str(raised.value), "compat/staging.py can be deleted: use DefaultStager"


def addresses(staged: Any) -> list[int]:
    return [shard.tensor.data_ptr() for table in staged.values() for shard in table.local_shards()]


def test_the_blocking_stager_keeps_no_buffers_without_a_gpu(tables: dict[str, ShardedTensor]) -> None:
    stager = BlockingAsyncStager()
    first, second = stager.stage(tables), stager.stage(tables)
    assert addresses(first) != addresses(second), "compat/staging.py can be deleted: use BlockingAsyncStager"
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError):  # which pins memory, whether or not there is a GPU
            BlockingAsyncStager(cache_staged_state_dict=True).stage(tables)


def test_ours_keeps_its_buffers(tables: dict[str, ShardedTensor]) -> None:
    staging = Staging()
    first = addresses(staging.staged(tables))
    assert addresses(staging.staged(tables)) == first
    assert not set(first) & set(addresses(tables))
