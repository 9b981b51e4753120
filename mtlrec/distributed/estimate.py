"""A plan before there are machines: TorchRec's planner on a topology that is only described.

Its figures are estimates of TorchRec's performance model for the embedding part alone, from bandwidths of the hardware
that it assumes; they rank plans, they do not promise a step time. Memory is closer to the truth: weights, optimizer
state and the buffers of a lookup, shard by shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import PlannerError, ShardingOption

from mtlrec.compat.planner_choice import PlannerChoice
from mtlrec.config import JobConfig
from mtlrec.distributed.plans import Plan
from mtlrec.distributed.sharding import GIB, planned
from mtlrec.errors import ConfigError
from mtlrec.io import one_line

PHASES = ("input_dist_comms", "fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms", "prefetch_compute")


@dataclass(frozen=True)
class TableLoad:
    """How a table is kept. `ranks` has one entry per shard, `hbm_gb` and `ddr_gb` are over all of them."""

    table: str
    rows: int
    dim: int
    sharding_type: str
    compute_kernel: str
    ranks: list[int]
    hbm_gb: float
    ddr_gb: float


@dataclass(frozen=True)
class RankLoad:
    """What the tables cost one rank: memory, and milliseconds of a step by phase."""

    rank: int
    hbm_gb: float
    ddr_gb: float
    ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        return sum(self.ms.values())


@dataclass(frozen=True)
class Estimate:
    tables: list[TableLoad]
    ranks: list[RankLoad]
    usable_gb: float
    """Of a rank's memory, less what the planner keeps back for the dense part, inputs and slack."""
    batch_size: int
    device: str
    plan: Plan

    @property
    def slowest(self) -> RankLoad:
        return max(self.ranks, key=lambda rank: rank.total_ms)

    @property
    def imbalance(self) -> float:
        """The slowest rank's time over the mean: 1 is even."""
        mean = sum(rank.total_ms for rank in self.ranks) / len(self.ranks)
        return self.slowest.total_ms / mean if mean else 1.0

    def report(self) -> list[Table | str]:
        """For a console: the tables, then a line each about memory and time."""
        tables = Table(title=f"{len(self.ranks)} ranks ({self.device}), {self.batch_size:,} rows each")
        for heading in ("table", "rows", "dim", "sharding", "kernel", "ranks", "GB"):
            tables.add_column(heading, justify="right" if heading in ("rows", "dim", "GB") else "left")
        for one in self.tables:
            ranks = "all" if set(one.ranks) == set(range(len(self.ranks))) else _spans(one.ranks)
            size = f"{one.hbm_gb + one.ddr_gb:,.2f}"
            words = (one.table, f"{one.rows:,}", str(one.dim), one.sharding_type, one.compute_kernel, ranks, size)
            tables.add_row(*words)
        memory = [rank.hbm_gb if self.device == "cuda" else rank.ddr_gb for rank in self.ranks]
        fullest = max(range(len(memory)), key=memory.__getitem__)
        phases = ", ".join(f"{phase} {ms:.2f}" for phase, ms in self.slowest.ms.items() if ms)
        return [
            tables,
            f"memory of the tables: {max(memory):,.2f} GB on rank {fullest}, {sum(memory) / len(memory):,.2f} on the "
            f"average one, of {self.usable_gb:,.1f} GB that a rank has for them",
            f"embedding part of a step, as TorchRec estimates it: {self.slowest.total_ms:.2f} ms on rank "
            f"{self.slowest.rank} ({phases}), {self.imbalance:.2f} times the average rank",
        ]


def estimate(
    module: nn.Module, job: JobConfig, nodes: int, per_node: int, device: str, hbm_gb: float, ddr_gb: float
) -> Estimate:
    """Plans for `nodes` times `per_node` ranks with so much memory each (`ddr_gb` is of the host, per rank).

    Raises ConfigError where nothing fits, naming the largest tables and what would help.
    """
    topology = Topology(
        world_size=nodes * per_node,
        local_world_size=per_node,
        compute_device=device,
        hbm_cap=int(hbm_gb * GIB) if device == "cuda" else 0,
        ddr_cap=int(ddr_gb * GIB),
    )
    choice = PlannerChoice()
    try:
        plan = planned(module, job, topology, stats=choice)
    except (PlannerError, RuntimeError) as error:
        if type(error) not in (PlannerError, RuntimeError):
            raise
        raise ConfigError(_what_does_not_fit(job, nodes * per_node, device, hbm_gb, ddr_gb, error)) from None
    return Estimate(
        tables=sorted(map(_table, choice.options), key=lambda one: -(one.hbm_gb + one.ddr_gb)),
        ranks=_loads(choice.options, nodes * per_node),
        usable_gb=min(one.storage.hbm if device == "cuda" else one.storage.ddr for one in choice.devices) / GIB,
        batch_size=job.data.batch_size,
        device=device,
        plan=Plan.of(plan, nodes * per_node),
    )


def _spans(ranks: Sequence[int]) -> str:
    """`0-7, 9`."""
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _table(option: ShardingOption) -> TableLoad:
    rows, dim = option.tensor.shape
    storages = [shard.storage for shard in option.shards if shard.storage is not None]
    return TableLoad(
        table=option.name,
        rows=rows,
        dim=dim,
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        ranks=[int(shard.rank or 0) for shard in option.shards],
        hbm_gb=sum(one.hbm for one in storages) / GIB,
        ddr_gb=sum(one.ddr for one in storages) / GIB,
    )


def _loads(options: Sequence[ShardingOption], ranks: int) -> list[RankLoad]:
    hbm, ddr = [0] * ranks, [0] * ranks
    ms = [dict.fromkeys(PHASES, 0.0) for _ in range(ranks)]
    for option in options:
        for shard in option.shards:
            assert shard.rank is not None
            assert shard.storage is not None
            assert shard.perf is not None
            hbm[shard.rank] += shard.storage.hbm
            ddr[shard.rank] += shard.storage.ddr
            for phase in PHASES:
                ms[shard.rank][phase] += getattr(shard.perf, phase)
    return [RankLoad(rank, hbm[rank] / GIB, ddr[rank] / GIB, ms[rank]) for rank in range(ranks)]


def _what_does_not_fit(job: JobConfig, ranks: int, device: str, hbm_gb: float, ddr_gb: float, error: Exception) -> str:
    sizes = {name: table.rows * table.dim * 4 / GIB for name, table in job.tables.items()}
    largest = ", ".join(f"{name} {sizes[name]:,.1f}" for name in sorted(sizes, key=lambda name: -sizes[name])[:3])
    each = f"{hbm_gb:g} GB and {ddr_gb:g} GB of their host" if device == "cuda" else f"{ddr_gb:g} GB"
    total = sum(sizes.values())
    what = f"no plan for {ranks} ranks of {each}: the weights alone are {total:,.1f} GB, of which {largest}"
    if total > ranks * (ddr_gb + (hbm_gb if device == "cuda" else 0)):
        return f"{what}; take more ranks or memory, or lower tables' rows or dim"
    least = "row_wise" + (" and fused_uvm_caching" if device == "cuda" else "")
    reason = one_line(error, 160)
    return f"{what}; loosen sharding.constraints ({least} ask least of a rank) or lower data.batch_size ({reason})"
