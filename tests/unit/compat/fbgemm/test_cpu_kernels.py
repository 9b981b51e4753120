"""FBGEMM still has no Adam and no weight decay on CPU, and no lookup on CPU in a table without rows."""

from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)

from mtlrec.compat.fbgemm.cpu_kernels import has_rank_without_lookup


def look_up(rows: int, optimizer: EmbOptimType) -> str:
    """The error of a lookup on CPU, if there is one."""
    tables = [(rows, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)]
    try:
        module = SplitTableBatchedEmbeddingBagsCodegen(tables, optimizer=optimizer, device=torch.device("cpu"))
        module(torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    except (AssertionError, RuntimeError) as error:
        return str(error)
    return ""


def test_there_is_no_adam_on_cpu() -> None:
    error = look_up(10, EmbOptimType.ADAM)
    assert "not supported in CPU mode" in error, "TableAdam of config/kinds/optimizers.py may be fused on cpu"


def updated(**options: Any) -> torch.Tensor:
    """A table's rows after one step of row-wise Adagrad on all of them."""
    tables = [(4, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)]
    device = torch.device("cpu")
    optimizer = EmbOptimType.EXACT_ROWWISE_ADAGRAD
    module = SplitTableBatchedEmbeddingBagsCodegen(tables, optimizer=optimizer, device=device, **options)
    module.split_embedding_weights()[0].copy_(torch.arange(16.0).view(4, 4))
    module(torch.arange(4), torch.arange(5)).sum().backward()
    return module.split_embedding_weights()[0].clone()


def test_weight_decay_is_ignored_on_cpu() -> None:
    decayed = updated(weight_decay=0.5, weight_decay_mode=WeightDecayMode.L2)
    assert torch.equal(decayed, updated()), "TableRowwiseAdagrad of config/kinds/optimizers.py may decay on cpu"


def test_there_is_no_lookup_without_rows() -> None:
    assert not look_up(1, EmbOptimType.EXACT_SGD)
    error = look_up(0, EmbOptimType.EXACT_SGD)
    assert "weights[0]" in error, "has_rank_without_lookup of compat/fbgemm/cpu_kernels.py can be deleted"


@pytest.mark.parametrize(("rows", "ranks", "left"), [(1, 2, True), (2, 2, False), (5, 4, True), (8, 4, False)])
def test_ranks_without_rows(rows: int, ranks: int, left: bool) -> None:
    """5 rows on 4 ranks are 2, 2, 1 and 0."""
    assert has_rank_without_lookup(rows, ranks, "cpu") == left
    assert not has_rank_without_lookup(rows, ranks, "cuda")
