"""Sharded training is unsharded training: the same losses, for every sharding type and every sparse optimizer.

The unsharded side is written out here in plain torch: a real `EmbeddingBagCollection`, torch's optimizers, a loop.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim import RowWiseAdagrad

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import process_group
from mtlrec.models.build import build_train_module
from mtlrec.training.optim import Optimizers, learning_rate
from mtlrec.training.sharded import build_sharded
from tests.support.ranks import run_ranks
from tests.support.toy import collated, toy_job, toy_table

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS, GLOBAL_BATCH = 20, 96
TYPES = ["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "grid_shard"]
SPARSE = {"rowwise_adagrad": 0.1, "adagrad": 0.1, "sgd": 1.0}
USER_LR, CLIP = 0.5, 0.0002


def job_with(sharding: str, sparse: str, weights: str | None = None) -> JobConfig:
    constraint = {"types": [sharding]}
    recent = {"name": "recent_items", "table": "item", "pooling": "mean", "weights": weights}
    return toy_job(
        features={"sparse": [{"name": "user_id", "table": "user"}, {"name": "item_id", "table": "item"}, recent]},
        tables={"user": {"rows": 50, "dim": 16, "lr": USER_LR * SPARSE[sparse]}, "item": {"rows": 40, "dim": 16}},
        sharding={"constraints": {"user": constraint, "item": constraint}},
        optim={
            "sparse": {
                "kind": sparse,
                "lr": SPARSE[sparse],
                "warmup_steps": 5,
                "decay": "linear",
                "clip_value": None if sharding == "data_parallel" else CLIP,
            },
            "dense": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0},
        },
    )


# Row-wise Adagrad keeps one mean of squares per row *and shard*: with a row cut into columns it is another optimizer.
BY_COLUMN = ["column_wise", "table_column_wise", "grid_shard"]
CASES: list[tuple[str, ...]] = [
    (sharding, "adagrad" if sharding in BY_COLUMN else "rowwise_adagrad") for sharding in TYPES
]
CASES += [(sharding, kind) for sharding in ("row_wise", "data_parallel") for kind in ("adagrad", "sgd")]
CASES += [(sharding, "rowwise_adagrad", "recent_weights") for sharding in ("row_wise", "table_wise", "data_parallel")]
# table of 50 x 16 or 40 x 16 on two ranks of one host: what the plan must have made of it
SHARDS = {"data_parallel": 0, "table_wise": 1, "grid_shard": 4}


def batches(job: JobConfig, rank: int, world_size: int) -> list[Batch]:
    """The rank's part of 20 global batches: one rank gets many more rows than the other, padded to the same size."""
    made = []
    for step in range(STEPS):
        table = toy_table(GLOBAL_BATCH, seed=step)
        first = 0 if rank == 0 else GLOBAL_BATCH // 4
        last = GLOBAL_BATCH if rank == world_size - 1 else GLOBAL_BATCH // 4
        made.append(collated(table.slice(first, last - first), GLOBAL_BATCH, job))
    return made


def train_unsharded(job: JobConfig) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    torch.manual_seed(0)
    module = build_train_module(job, torch.device("cpu"))
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tables = {name: [table] for name, table in module.model.sparse_arch.table_parameters()}
    dense = dict(module.model.over_arch.named_parameters())
    kinds: dict[str, Any] = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    kind = job.optim.sparse.kind
    groups = [{"params": tables[name]} for name in ("user", "item")]
    sparse = kinds[kind](groups, lr=1.0, **({} if kind == "sgd" else {"eps": 1e-8}))
    decayed = [p for name, p in dense.items() if name.endswith("weight") and "residual" not in name]
    spared = [p for name, p in dense.items() if name.endswith("bias") or "residual" in name]
    assert len(decayed) + len(spared) == len(dense)
    adamw = torch.optim.AdamW([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], lr=0.01, weight_decay=0.1)
    losses: list[list[float]] = []
    clipped: list[float] = []
    limit = job.optim.sparse.clip_value
    for collection in module.model.sparse_arch.collections.values():
        collection.register_forward_hook(lambda *call: clip(call[2].values(), limit, clipped))
    for step, batch in enumerate(batches(job, 0, 1)):
        for group, factor in zip(sparse.param_groups, (USER_LR, 1.0), strict=True):
            group["lr"] = factor * learning_rate(job.optim.sparse, step, STEPS)
        sparse.zero_grad()
        adamw.zero_grad()
        loss, output = module(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dense.values(), 1.0)
        sparse.step()
        adamw.step()
        losses.append(output.report.losses.tolist())
    assert limit is None or max(clipped) > 0.1, "little is clipped: equality would say little"
    return start, losses


def clip(pooled: torch.Tensor, limit: float | None, clipped: list[float]) -> None:
    """Clip the gradient of the pooled vectors in backward, and note which share of it that is."""

    def clamp(gradient: torch.Tensor) -> torch.Tensor:
        clipped.append((gradient.abs() > limit).float().mean().item())
        return gradient.clamp(-limit, limit)

    if limit is not None:
        pooled.register_hook(clamp)


def train_sharded(
    starts: dict[tuple[str, str], dict[str, torch.Tensor]],
) -> dict[tuple[str, str], tuple[dict[str, Any], list[list[float]]]]:
    """Every case in one group: starting processes takes longer than training."""
    results = {}
    with process_group("cpu", 60) as ranks:
        for case, start in starts.items():
            job = job_with(*case)
            model = build_sharded(job, ranks)
            fill(model.state(), start)
            optimizers = Optimizers(model.module, job, STEPS)
            pipeline: Any = TrainPipelineSparseDist(model.module, optimizers.combined, ranks.device)
            stream, losses = iter(batches(job, ranks.rank, ranks.world_size)), []
            for step in range(STEPS):
                optimizers.set_learning_rates(step)
                losses.append(pipeline.progress(stream).report.losses.tolist())
            results[case] = (model.plan.dump()["tables"], losses)
    return results


def fill(state: dict[str, Any], full: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if isinstance(tensor, ShardedTensor):
            for shard in tensor.local_shards():
                (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.detach().copy_(full[name][row : row + rows, column : column + columns])
        else:
            tensor.detach().copy_(full[name])


@pytest.fixture(scope="module")
def unsharded() -> dict[tuple[str, ...], Any]:
    return {case: train_unsharded(job_with(*case)) for case in CASES}


@pytest.fixture(scope="module")
def sharded(unsharded: dict[tuple[str, ...], Any]) -> Any:
    starts = {case: start for case, (start, _) in unsharded.items()}
    return run_ranks(2, train_sharded, starts)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_sharded_equals_unsharded(case: tuple[str, ...], unsharded: Any, sharded: Any) -> None:
    wanted = torch.tensor(unsharded[case][1])
    for plan, losses in (rank[case] for rank in sharded):
        assert {table["sharding_type"] for table in plan.values()} == {case[0]}
        assert {len(table["shards"]) for table in plan.values()} == {SHARDS.get(case[0], 2)}
        assert {shard["size"][1] for table in plan.values() for shard in table["shards"]} <= {
            8 if case[0] in BY_COLUMN else 16
        }
        torch.testing.assert_close(torch.tensor(losses), wanted, rtol=0, atol=1e-5)
    assert (wanted[-1] < wanted[0]).any(), "nothing was learned, so equality would say little"


def test_the_ranks_of_a_row_wise_table_start_with_different_rows(tmp_path: Path) -> None:
    first, second = run_ranks(2, first_rows)
    assert not torch.equal(torch.tensor(first), torch.tensor(second))


def first_rows() -> list[float]:
    with process_group("cpu", 60) as ranks:
        model = build_sharded(job_with("row_wise", "sgd"), ranks)
        table = next(t for name, t in model.state().items() if "user" in name)
        return table.local_shards()[0].tensor[0].tolist()
