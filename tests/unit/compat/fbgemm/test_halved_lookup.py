"""FBGEMM shown each feature as two computes what it computes otherwise."""

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec.distributed import batched_embedding_kernel

from mtlrec.compat.fbgemm.fused_lookups import fused_lookups
from mtlrec.compat.fbgemm.halved_lookup import WIDEST, HalvedLookup
from mtlrec.distributed.process_group import process_group
from mtlrec.training.sharded import build_sharded
from tests.support.toy import toy_job

# The tables' dims, and the table of each feature: alike, of several widths, shared by features, too wide.
TABLES = {
    "one": ([8], [0]),
    "alike": ([8, 8, 8], [0, 1, 2]),
    "mixed": ([4, 8, 8, 64, 4], [0, 1, 2, 3, 4]),
    "shared": ([8, 4], [0, 0, 1]),
    "wide": ([8, WIDEST + 4], [0, 1]),
}
ROWS_OF_A_TABLE = 11


def lookup(kind: type[SplitTableBatchedEmbeddingBagsCodegen], tables: str, pooling: PoolingMode) -> HalvedLookup:
    dims, features = TABLES[tables]
    made = kind(
        [(ROWS_OF_A_TABLE, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for dim in dims],
        feature_table_map=features,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
        pooling_mode=pooling,
        device=torch.device("cpu"),
    )
    torch.manual_seed(0)
    for weight in made.split_embedding_weights():
        weight.data.copy_(torch.randn(weight.shape))
    return made


def train(module: SplitTableBatchedEmbeddingBagsCodegen, rows: int, features: int, weighted: bool) -> list[Tensor]:
    """The outputs of three steps, then the tables and their states."""
    torch.manual_seed(rows)
    seen: list[Tensor] = []
    for _ in range(3):
        lengths = torch.randint(0, 4, (features * rows,))
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        ids = torch.randint(0, ROWS_OF_A_TABLE, (int(offsets[-1]),))
        pooled = module(ids, offsets, torch.rand(len(ids)) if weighted else None)
        pooled.backward(torch.randn(pooled.shape))
        seen.append(pooled.detach())
    tables = [weight.detach() for weight in module.split_embedding_weights()]
    return seen + tables + [state for states in module.split_optimizer_states() for state in states]


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("pooling", [PoolingMode.SUM, PoolingMode.MEAN], ids=["sum", "mean"])
@pytest.mark.parametrize("rows", [1, 2, 7, 32])
@pytest.mark.parametrize("tables", TABLES)
def test_outputs_tables_and_states_are_those_of_whole_features(
    tables: str, rows: int, pooling: PoolingMode, weighted: bool
) -> None:
    halved, whole = (lookup(kind, tables, pooling) for kind in (HalvedLookup, SplitTableBatchedEmbeddingBagsCodegen))
    assert halved.halved == (tables != "wide")
    features = len(TABLES[tables][1])
    assert len(halved.feature_table_map) == features * (2 if halved.halved else 1)
    ours, theirs = (train(module, rows, features, weighted) for module in (halved, whole))
    assert ours[0].shape == (rows, sum(TABLES[tables][0][table] for table in TABLES[tables][1]))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    if rows == 32:
        assert not torch.equal(ours[3], lookup(HalvedLookup, tables, pooling).split_embedding_weights()[0])


@pytest.mark.parametrize("dim", [8, 16, WIDEST])
def test_fbgemm_has_another_kernel_for_a_table_with_one_feature(dim: int) -> None:
    """The generated one, which is the slow one: told by its digits, where the arithmetic is otherwise the same."""
    one, shared = (updated(features, dim) for features in ([0], [0, 0]))
    torch.testing.assert_close(one, shared)
    assert not torch.equal(one, shared), "FBGEMM has one kernel: time it, compat/fbgemm/halved_lookup.py may be deleted"


def updated(features: list[int], dim: int) -> Tensor:
    """A table after three updates, in each of which a row has one id at most: there are no sums to reorder."""
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(64, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        feature_table_map=features,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
        device=torch.device("cpu"),
    )
    torch.manual_seed(0)
    (table,) = module.split_embedding_weights()
    table.data.copy_(torch.randn(table.shape))
    for _ in range(3):
        ids, gradients = torch.randperm(64)[:32], torch.randn(32, dim)
        pooled = module(ids, torch.arange(33))
        of_features = gradients.view(len(features), -1, dim).permute(1, 0, 2)
        pooled.backward(of_features.reshape(pooled.shape))
    return table.detach().clone()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad", "sgd"])
def test_only_row_wise_adagrad_is_looked_up_by_halves(kind: str) -> None:
    job = toy_job(optim={"sparse": {"kind": kind}})
    with process_group("cpu") as ranks:
        found = fused_lookups(build_sharded(job, ranks).network)
    assert found
    assert all(isinstance(module, HalvedLookup) == (kind == "rowwise_adagrad") for module in found)
    assert batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen is SplitTableBatchedEmbeddingBagsCodegen
