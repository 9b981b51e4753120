"""From a module with tables on meta to a model-parallel one: constraints, plan, `DistributedModelParallel`."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Stats
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from mtlrec.compat.fbgemm.cpu_kernels import has_rank_without_lookup
from mtlrec.compat.fbgemm.halved_lookup import halved_lookups
from mtlrec.compat.sharding_types import BY_ROWS, TableSharder
from mtlrec.config import JobConfig, TableConstraint, TableOptimizer
from mtlrec.config.kinds.optimizers import TableAdam, TableRowwiseAdagrad
from mtlrec.distributed.plans import Plan
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.errors import ConfigError
from mtlrec.io import one_line

GIB = 1024**3


def plan_sharding(module: nn.Module, job: JobConfig, ranks: Ranks) -> ShardingPlan:
    """The planner's choice within the config's constraints, made on rank 0; or the plan in the file that it names.

    Raises ConfigError where no plan obeys the constraints or fits the memory, or the file's is not for this job.
    """
    if job.sharding.plan is not None:
        path, size = Path(job.sharding.plan), ranks.world_size
        plan = on_first_rank(ranks, lambda: Plan.read(path, job, size))
        for name, table in plan.tables.items():
            reason = _refused(job, name, size, ranks.device.type).get(table.sharding_type)
            if reason is not None:
                raise ConfigError(f"sharding.plan: {path}: {name}: {reason}")
        return plan.of_module(module, sharders(job, ranks.device), ranks.device.type, ranks.local_world_size)
    topology = Topology(
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        compute_device=ranks.device.type,
        hbm_cap=None if job.sharding.hbm_gb is None else int(job.sharding.hbm_gb * GIB),
        ddr_cap=_host_memory(job, ranks),
    )

    def made() -> ShardingPlan:
        try:
            return planned(module, job, topology)
        except (PlannerError, RuntimeError) as error:  # RuntimeError: the enumerator, where a kernel does not exist
            if type(error) not in (PlannerError, RuntimeError):  # a NotImplementedError, say, is a bug
                raise
            reason = one_line(error, 300)
            raise ConfigError(f"sharding: no plan for {ranks.world_size} ranks obeys the config: {reason}") from None

    return on_first_rank(ranks, made)


def planned(module: nn.Module, job: JobConfig, topology: Topology, stats: Stats | None = None) -> ShardingPlan:
    """The planner's choice under the job's constraints and batch size; `stats` is told it.

    On CPU the planner's costs, which are those of GPUs, prefer row-wise shards, and a job of 26 tables trained a tenth
    slower with them (docs/log.md). There it may first place whole tables alone, and cut them where these do not fit or
    are fewer than ranks.

    Raises PlannerError or RuntimeError where there is none.
    """
    device, world_size = topology.compute_device, topology.world_size

    def choice(by_default: list[str] | None) -> ShardingPlan:
        planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=job.data.batch_size,
            constraints=_constraints(job, world_size, device, by_default),
            stats=stats,
            debug=False,
        )
        return planner.plan(module, sharders(job, torch.device(device)))

    if world_size == 1:  # nothing to divide, but row-wise shards would have their ids put into buckets
        return choice(["table_wise"])
    if device == "cpu" and len(job.tables) >= world_size:
        with suppress(PlannerError):
            return choice(["data_parallel", "table_wise"])
    return choice(None)


def _host_memory(job: JobConfig, ranks: Ranks) -> int | None:
    """What a rank may take of its host: the config's, or on CPU its share of what there is; None: TorchRec's 128 GB."""
    if job.sharding.ddr_gb is not None:
        return int(job.sharding.ddr_gb * GIB)
    if ranks.device.type == "cuda":
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // ranks.local_world_size


def shard(module: nn.Module, plan: ShardingPlan, job: JobConfig, ranks: Ranks) -> DistributedModelParallel:
    """Makes the tables where the plan puts them and wraps the rest in DDP.

    Ranks draw their shards from different seeds: with one seed for all, the shards of a row-wise table would be copies.
    """
    torch.manual_seed(job.train.seed + 1 + ranks.rank)
    device = ranks.device
    slow = device.type == "cpu" and job.optim.sparse.kind == "rowwise_adagrad"
    with halved_lookups() if slow else nullcontext():
        return DistributedModelParallel(module=module, device=device, plan=plan, sharders=sharders(job, device))


def sharders(job: JobConfig, device: torch.device) -> list[ModuleSharder[nn.Module]]:
    """One for each kind of collection, with what pooled embeddings travel as.

    TorchRec takes fp16 for bf16 on gloo, which has no bf16.
    """
    communication = job.sharding.communication
    travel = QCommsConfig(CommType(communication.forward), CommType(communication.backward))
    codecs = get_qcomm_codecs_registry(travel, device=device)
    sharder = TableSharder(qcomm_codecs_registry=codecs, fused_params=fused_settings(job.optim.sparse))
    return [sharder]  # type: ignore[list-item]


def fused_settings(sparse: TableOptimizer) -> dict[str, Any]:
    """What FBGEMM's fused optimizer takes and the torch optimizer that stands for it does not."""
    settings: dict[str, Any] = {}
    if sparse.clip_value is not None:
        settings |= {"gradient_clipping": True, "max_gradient": sparse.clip_value}
    if isinstance(sparse, TableRowwiseAdagrad | TableAdam) and sparse.weight_decay:
        settings["weight_decay"] = sparse.weight_decay
    if isinstance(sparse, TableRowwiseAdagrad) and sparse.weight_decay:
        settings["weight_decay_mode"] = WeightDecayMode.L2
    if isinstance(sparse, TableAdam):
        settings |= dict(zip(("beta1", "beta2"), sparse.betas, strict=True))
    return settings


def _constraints(
    job: JobConfig, world_size: int, device: str, by_default: list[str] | None
) -> dict[str, ParameterConstraints]:
    constraints = {}
    for table in job.tables:
        wanted = job.sharding.constraints.get(table)
        kernels: list[str] | None = None if wanted is None or wanted.kernels is None else list(wanted.kernels)
        constraints[table] = ParameterConstraints(
            sharding_types=_types(job, table, world_size, device, by_default),
            compute_kernels=kernels,
            cache_params=_cache(wanted),
            min_partition=_column_width(job.tables[table].dim, world_size) if wanted else None,
        )
    return constraints


def _column_width(dim: int, world_size: int) -> int:
    """Narrowest shard of a table that the config wants sharded by columns: a share per rank, in multiples of 4.

    TorchRec's own limit is 128 columns, below which such a table stays in one piece.
    """
    widths = [width for width in range(4, dim + 1, 4) if dim % width == 0 and width * world_size >= dim]
    return widths[0]


def _cache(wanted: TableConstraint | None) -> CacheParams | None:
    if wanted is None or wanted.cache_load_factor is None:
        return None
    return CacheParams(load_factor=wanted.cache_load_factor)


def _types(job: JobConfig, table: str, world_size: int, device: str, by_default: list[str] | None) -> list[str] | None:
    """The config's, or the default, without those that would not train rightly; None: the planner's own."""
    wanted, refused = job.sharding.constraints.get(table), _refused(job, table, world_size, device)
    if wanted is None and by_default is None and not refused:
        return None
    types = by_default or TableSharder().sharding_types(device) if wanted is None else list(wanted.types)
    left = [kind for kind in types if kind not in refused]
    if not left:
        raise ConfigError(f"sharding.constraints.{table}: {refused[types[0]]}")
    return left


def _refused(job: JobConfig, table: str, world_size: int, device: str) -> dict[str, str]:
    """By sharding type, why it is not for this table."""
    refused = {}
    sparse = job.optim.sparse
    # FBGEMM's Adam and its weight decay move the rows of the batch only, and it clips before gradients are summed.
    only_fused = {
        "kind adam": sparse.kind == "adam",
        "weight_decay": getattr(sparse, "weight_decay", 0) > 0,
        "clip_value": sparse.clip_value is not None,
    }
    for key, is_set in only_fused.items():
        if is_set:
            why = f"data_parallel does not go with optim.sparse.{key}: replicated tables would train differently"
            refused["data_parallel"] = why
    rows = job.tables[table].rows
    if has_rank_without_lookup(rows, world_size, device):
        why = f"its {rows} rows over {world_size} ranks leave one without, for which FBGEMM on CPU has no lookup"
        refused |= dict.fromkeys(BY_ROWS, f"{why}; take table_wise or data_parallel")
    return refused
