"""From a module with tables on meta to a model-parallel one: constraints, plan, `DistributedModelParallel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Stats
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan, ShardingType

from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks, on_first_rank

GIB = 1024**3


class TableSharder(EmbeddingBagCollectionSharder):
    """The stock sharder, which on CPU leaves out the row-wise types although gloo has had what they need since 2.13."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        missing = [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value]
        stock = super().sharding_types(compute_device_type)
        return stock + [kind for kind in missing if kind not in stock]


def plan_sharding(module: nn.Module, job: JobConfig, ranks: Ranks) -> ShardingPlan:
    """The planner's choice within the config's constraints; made on rank 0, the same everywhere.

    Raises ValueError where no plan obeys the constraints or fits the memory.
    """
    topology = Topology(
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        compute_device=ranks.device.type,
        hbm_cap=None if job.sharding.hbm_gb is None else int(job.sharding.hbm_gb * GIB),
        ddr_cap=None if job.sharding.ddr_gb is None else int(job.sharding.ddr_gb * GIB),
    )
    planner = planner_of(job, topology)

    def plan() -> ShardingPlan:
        try:
            return planner.plan(module, sharders())
        except (PlannerError, RuntimeError) as error:  # RuntimeError: the enumerator, where a kernel does not exist
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"sharding: no plan for {ranks.world_size} ranks obeys the config: {reason}") from None

    return on_first_rank(ranks, plan)


def planner_of(job: JobConfig, topology: Topology, stats: Stats | None = None) -> EmbeddingShardingPlanner:
    """The job's constraints and batch size on a topology; `stats` is told the choice."""
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=job.data.batch_size,
        constraints=_constraints(job, topology.world_size, topology.compute_device),
        stats=stats,
        debug=False,
    )


def shard(module: nn.Module, plan: ShardingPlan, ranks: Ranks, seed: int) -> DistributedModelParallel:
    """Makes the tables where the plan puts them and wraps the rest in DDP.

    Ranks draw their shards from different seeds: with one seed for all, the shards of a row-wise table would be copies.
    """
    torch.manual_seed(seed + 1 + ranks.rank)
    return DistributedModelParallel(module=module, device=ranks.device, plan=plan, sharders=sharders())


def describe_plan(plan: ShardingPlan) -> dict[str, dict[str, Any]]:
    """Per table: sharding type, kernel, ranks. Plain types, for `plan.json`."""
    described = {}
    for module_plan in plan.plan.values():
        assert isinstance(module_plan, EmbeddingModuleShardingPlan)
        for table, sharding in module_plan.items():
            described[table] = {
                "sharding_type": sharding.sharding_type,
                "compute_kernel": sharding.compute_kernel,
                "ranks": list(sharding.ranks or []),
                "shards": [list(shard.shard_sizes) for shard in getattr(sharding.sharding_spec, "shards", [])],
            }
    return dict(sorted(described.items()))


def sharders() -> list[ModuleSharder[nn.Module]]:
    return [TableSharder()]  # type: ignore[list-item]


def _constraints(job: JobConfig, world_size: int, device: str) -> dict[str, ParameterConstraints]:
    constraints = {}
    for table in job.tables:
        wanted = job.sharding.constraints.get(table)
        types: list[str] | None = None if wanted is None else list(wanted.types)
        kernels: list[str] | None = None if wanted is None or wanted.kernels is None else list(wanted.kernels)
        if types is None and job.optim.sparse.kind == "adam":
            types = _types_without_data_parallel(device)
        constraints[table] = ParameterConstraints(
            sharding_types=types,
            compute_kernels=kernels,
            min_partition=_column_width(job.tables[table].dim, world_size) if wanted else None,
        )
    return constraints


def _column_width(dim: int, world_size: int) -> int:
    """Narrowest shard of a table that the config wants sharded by columns: a share per rank, in multiples of 4.

    TorchRec's own limit is 128 columns, below which such a table stays in one piece.
    """
    widths = [width for width in range(4, dim + 1, 4) if dim % width == 0 and width * world_size >= dim]
    return widths[0]


def _types_without_data_parallel(device: str) -> list[str]:
    """FBGEMM's Adam moves only the rows of the batch, torch's moves all: a replicated table would train differently."""
    return [kind for kind in TableSharder().sharding_types(device) if kind != "data_parallel"]
