"""`docs/dlrm.md`, run as it is written: AdaTT as the over-arch of TorchRec's DLRM, sharded over two ranks.

The unsharded side of the equality is plain torch: one process, whole batches, a loop.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.compat.sharding_types import TableSharder
from mtlrec.distributed.plans import Plan
from mtlrec.distributed.process_group import process_group
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

DOC = (Path(__file__).parents[2] / "docs" / "dlrm.md").read_text(encoding="utf-8")
OVER_ARCH, TRAIN_MODULE, TRAINING, GATES = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)

USERS, ITEMS, DIM = 40, 30, 8
GLOBAL_BATCH, STEPS, EQUAL_STEPS = 128, 300, 8
LR = 1.0  # of the SGD that the equality is about
State = dict[str, Tensor]


def documented_model() -> dict[str, Any]:
    """The names that the page's first two blocks define, from the same weights every time."""
    tables = [
        EmbeddingBagConfig(
            name=name, num_embeddings=rows, embedding_dim=DIM, feature_names=features, init_fn=nn.init.normal_
        )
        for name, rows, features in (("user", USERS, ["user"]), ("item", ITEMS, ["item", "history"]))
    ]
    torch.manual_seed(0)
    names: dict[str, Any] = {"tables": EmbeddingBagCollection(tables=tables)}
    exec(OVER_ARCH + TRAIN_MODULE, names)
    return names


def batch_of(step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """The rank's share of a global batch. Task 0 follows the user and a dense feature, task 1 the items and another."""
    planted = torch.Generator().manual_seed(0)
    user_effect = 2 * torch.randn(USERS, generator=planted)
    item_effect = 2 * torch.randn(ITEMS, generator=planted)
    draw = torch.Generator().manual_seed(1 + step)
    dense = torch.randn(GLOBAL_BATCH, 4, generator=draw)
    user = torch.randint(USERS, (GLOBAL_BATCH, 1), generator=draw)
    item = torch.randint(ITEMS, (GLOBAL_BATCH, 1), generator=draw)
    history = torch.randint(ITEMS, (GLOBAL_BATCH, 3), generator=draw)
    seen = torch.arange(3) < torch.randint(4, (GLOBAL_BATCH, 1), generator=draw)
    click = user_effect[user[:, 0]] + dense[:, 0]
    like = item_effect[item[:, 0]] + (item_effect[history] * seen).sum(dim=1) - dense[:, 1]
    labels = torch.bernoulli(torch.stack([click, like], dim=1).sigmoid(), generator=draw)

    mine = slice(GLOBAL_BATCH * rank // world_size, GLOBAL_BATCH * (rank + 1) // world_size)
    bags = [(user, torch.ones_like(user, dtype=torch.bool)), (item, torch.ones_like(item, dtype=torch.bool))]
    bags = [(ids[mine], is_there[mine]) for ids, is_there in [*bags, (history, seen)]]
    sparse = KeyedJaggedTensor(
        keys=["user", "item", "history"],
        values=torch.cat([ids[is_there] for ids, is_there in bags]),
        lengths=torch.cat([is_there.sum(dim=1) for _, is_there in bags]),
    )
    return Batch(dense_features=dense[mine], sparse_features=sparse, labels=labels[mine])


def train_unsharded() -> tuple[State, State, list[list[float]]]:
    """Weights before and after, and the tasks' losses of every step."""
    names = documented_model()
    train: nn.Module = names["MultiTaskTrain"](names["dlrm"])
    before = {name: tensor.clone() for name, tensor in train.state_dict().items()}
    sgd = torch.optim.SGD(train.parameters(), lr=LR)
    history = []
    for step in range(EQUAL_STEPS):
        sgd.zero_grad()
        loss, (losses, _, _) = train(batch_of(step))
        loss.backward()
        sgd.step()
        history.append(losses.tolist())
    return before, dict(train.state_dict()), history


def train_sharded(before: State, after: State) -> dict[str, Any]:
    """On every rank, in one group: starting processes takes longer than training."""
    with process_group("cpu", 60) as ranks:
        topology = Topology(world_size=2, local_world_size=2, compute_device="cpu")
        constraints = {
            "user": ParameterConstraints(sharding_types=["row_wise"]),
            "item": ParameterConstraints(sharding_types=["column_wise"], min_partition=DIM // 2),
        }
        yours = {
            "planner": EmbeddingShardingPlanner(topology=topology, constraints=constraints, debug=False),
            "sharders": [TableSharder()],
            "device": ranks.device,
        }
        return as_one_process(yours, before, after, ranks.rank) | as_documented(yours, ranks.rank)


def as_one_process(yours: dict[str, Any], before: State, after: State, rank: int) -> dict[str, Any]:
    """SGD from `before` on this rank's halves of the batches, checked against `after`."""
    names = documented_model()
    train = names["MultiTaskTrain"](names["dlrm"])
    apply_optimizer_in_backward(torch.optim.SGD, names["dlrm"].sparse_arch.parameters(), {"lr": LR})
    plan = yours["planner"].collective_plan(train, yours["sharders"])
    model = DistributedModelParallel(train, device=yours["device"], plan=plan, sharders=yours["sharders"])
    for mine, wanted in side_by_side(model.state_dict(), before):
        mine.copy_(wanted)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.SGD(p, lr=LR)
    )
    optimizer = CombinedOptimizer([model.fused_optimizer, dense])
    pipeline: Any = TrainPipelineSparseDist(model, optimizer, yours["device"])
    batches = (batch_of(step, rank, world_size=2) for step in range(EQUAL_STEPS))
    losses = [pipeline.progress(batches)[0].tolist() for _ in range(EQUAL_STEPS)]
    for mine, wanted in side_by_side(model.state_dict(), after):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6)
    return {"plan": Plan.of(plan, 2).dump()["tables"], "equal_losses": losses}


def as_documented(yours: dict[str, Any], rank: int) -> dict[str, Any]:
    names = documented_model() | yours
    names["batches"] = (batch_of(step, rank, world_size=2) for step in range(STEPS))
    names["batch"] = batch_of(STEPS, rank, world_size=2)
    exec(TRAINING + GATES, names)
    return {"losses": torch.stack(names["history"]).tolist(), "gates": names["gates"].tolist()}


def side_by_side(state: dict[str, Any], full: State) -> Iterator[tuple[Tensor, Tensor]]:
    """What this rank holds of every parameter, and that part of the whole."""
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {n: tuple(t.shape) for n, t in full.items()}
    for name, tensor in state.items():
        if not isinstance(tensor, ShardedTensor):
            yield tensor.detach(), full[name]
            continue
        for shard in tensor.local_shards():
            (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            yield shard.tensor.detach(), full[name][row : row + rows, column : column + columns]


@pytest.fixture(scope="module")
def unsharded() -> tuple[State, State, list[list[float]]]:
    return train_unsharded()


@pytest.fixture(scope="module")
def ranks(unsharded: tuple[State, State, list[list[float]]]) -> list[dict[str, Any]]:
    before, after, _ = unsharded
    return run_ranks(2, train_sharded, before, after)


def test_the_replacement_is_short() -> None:
    assert len(OVER_ARCH.splitlines()) < 15


def test_torchrec_s_own_train_module_gives_the_mean_over_tasks() -> None:
    names, batch = documented_model(), batch_of(0)
    total, (losses, logits, _) = names["MultiTaskTrain"](names["dlrm"])(batch)
    assert logits.shape == (GLOBAL_BATCH, 2)
    assert losses.shape == (2,)
    torch.testing.assert_close(total, losses.sum())
    torch.testing.assert_close(DLRMTrain(names["dlrm"])(batch)[0], losses.mean())


def test_two_ranks_train_as_one_process(
    unsharded: tuple[State, State, list[list[float]]], ranks: list[dict[str, Any]]
) -> None:
    before, after, wanted = unsharded
    for rank in ranks:  # each has compared its weights with `after`
        assert {table: kind["sharding_type"] for table, kind in rank["plan"].items()} == {
            "item": "column_wise",
            "user": "row_wise",
        }
        assert all(kind["ranks"] == [0, 1] for kind in rank["plan"].values())
    halves = torch.tensor([rank["equal_losses"] for rank in ranks])
    torch.testing.assert_close(halves.mean(dim=0), torch.tensor(wanted), rtol=0, atol=1e-5)
    unmoved = {name for name in before if torch.allclose(before[name], after[name], rtol=0, atol=1e-3)}
    assert not unmoved, "equality would say nothing of these"


def test_both_tasks_are_learned(ranks: list[dict[str, Any]]) -> None:
    losses = torch.tensor([rank["losses"] for rank in ranks]).mean(dim=0)
    assert losses.shape == (STEPS, 2)
    first, last = losses[:10].mean(dim=0), losses[-10:].mean(dim=0)
    assert (last < 0.8 * first).all(), f"{first.tolist()} -> {last.tolist()}"


def test_the_gates_are_seen(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        gates = torch.tensor(rank["gates"])
        assert gates.shape == (2, 5)
        torch.testing.assert_close(gates.sum(dim=1), torch.ones(2))
