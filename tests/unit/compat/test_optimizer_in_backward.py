"""torch and TorchRec still have no public way to put an optimizer into backward that the planner knows of."""

from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import apply_optimizer_in_backward as deprecated

from mtlrec.compat.optimizer_in_backward import apply_optimizer_in_backward
from mtlrec.compat.planner_choice import PlannerChoice
from mtlrec.compat.sharding_types import TableSharder


def test_torchrecs_function_is_deprecated() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.warns(DeprecationWarning, match="_apply_optimizer_in_backward"):
        deprecated(torch.optim.SGD, [parameter], {"lr": 0.1})
    public = getattr(torch.distributed.optim, "apply_optimizer_in_backward", None)
    assert not callable(public), "compat/optimizer_in_backward.py can be deleted"


def test_the_optimizer_steps_in_backward() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    apply_optimizer_in_backward(torch.optim.SGD, [parameter], {"lr": 0.5})
    parameter.sum().backward()
    assert parameter.tolist() == [0.5, 0.5]


def planned_bytes(fused_params: dict[str, Any], in_backward: bool) -> int:
    config = EmbeddingBagConfig(name="table", num_embeddings=1000, embedding_dim=16, feature_names=["id"])
    tables = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    if in_backward:
        apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.1})
    choice = PlannerChoice()
    topology = Topology(world_size=2, compute_device="cuda")
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=8, stats=choice)
    planner.plan(torch.nn.Sequential(tables), [TableSharder(fused_params=fused_params)])  # type: ignore[list-item]
    return sum(shard.storage.hbm for option in choice.options for shard in option.shards if shard.storage)


def test_the_planner_does_not_read_fused_params() -> None:
    without = planned_bytes({}, in_backward=False)
    by_fused_params = planned_bytes({"optimizer": EmbOptimType.EXACT_ADAGRAD}, in_backward=False)
    assert planned_bytes({}, in_backward=True) >= without + 1000 * 16 * 4
    assert by_fused_params == without, "compat/optimizer_in_backward.py can be deleted: use fused_params"
