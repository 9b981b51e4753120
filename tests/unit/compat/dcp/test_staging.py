"""DCP's stagers still cannot keep a copy of a ShardedTensor in host memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.staging import AsyncStager, BlockingAsyncStager, DefaultStager, StagingOptions

from mtlrec.compat.dcp.sharded_tensor import ShardedTensor
from mtlrec.compat.dcp.staging import Staging
from mtlrec.distributed.process_group import process_group
from mtlrec.training.sharded import build_sharded
from tests.support.toy import toy_job


@pytest.fixture
def tables() -> Iterator[dict[str, ShardedTensor]]:
    with process_group("cpu") as ranks:
        state = build_sharded(toy_job(), ranks).module.state_dict()
        yield {name: tensor for name, tensor in state.items() if ".embedding_bags." in name}


def addresses(staged: Any) -> list[int]:
    return [shard.tensor.data_ptr() for table in staged.values() for shard in table.local_shards()]


def error_of(stager: AsyncStager, tables: dict[str, ShardedTensor]) -> str:
    """What `stager` says against `tables`; empty if it takes them."""
    try:
        stager.stage(tables)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("share_memory", [False, True], ids=["own_memory", "shared_memory"])
def test_the_default_stager_takes_no_sharded_tensors(tables: dict[str, ShardedTensor], share_memory: bool) -> None:
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=share_memory, use_async_staging=False, use_non_blocking_copy=False
    )
    error = error_of(DefaultStager(options), tables)
    assert "data_ptr" in error, "compat/dcp/staging.py can be deleted: use DefaultStager"


def test_the_blocking_stager_keeps_no_buffers(tables: dict[str, ShardedTensor]) -> None:
    """With `cache_staged_state_dict` it does, and pins them, for which it needs a GPU."""
    stager = BlockingAsyncStager()
    first, second = stager.stage(tables), stager.stage(tables)
    assert addresses(first) != addresses(second), "compat/dcp/staging.py can be deleted: use BlockingAsyncStager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU memory can be pinned")
def test_the_blocking_stager_with_buffers_needs_a_gpu(tables: dict[str, ShardedTensor]) -> None:
    error = error_of(BlockingAsyncStager(cache_staged_state_dict=True), tables)
    assert "accelerator" in error, "compat/dcp/staging.py can be deleted: cache_staged_state_dict works without a GPU"


def test_ours_keeps_its_buffers(tables: dict[str, ShardedTensor]) -> None:
    staging = Staging()
    first = addresses(staging.staged(tables))
    assert addresses(staging.staged(tables)) == first
    assert not set(first) & set(addresses(tables))
