"""A plan of the tables as a file: written beside every run, made by `mtlrec plan`, taken by `sharding.plan`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, ValidationError
from torch import nn
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from mtlrec.compat.dcp.sharded_tensor import EnumerableShardingSpec, ShardMetadata
from mtlrec.config import JobConfig
from mtlrec.config.base import Strict
from mtlrec.config.training import Kernel, LoadFactor
from mtlrec.config.training import ShardingType as ShardingKind
from mtlrec.errors import ConfigError


class PlannedShard(Strict):
    """Rows and columns of a table that one rank has; the last ranks of a row-wise table may have no row."""

    rank: NonNegativeInt
    offset: tuple[NonNegativeInt, NonNegativeInt]
    size: tuple[NonNegativeInt, PositiveInt]


class TablePlan(Strict):
    """`ranks` is TorchRec's; without shards every rank has the whole table."""

    sharding_type: ShardingKind
    compute_kernel: Kernel
    cache_load_factor: LoadFactor | None = None
    ranks: list[NonNegativeInt]
    shards: list[PlannedShard]

    def columns(self, dim: int) -> list[tuple[int, int]]:
        """First column and width of every piece of a row."""
        return sorted({(shard.offset[1], shard.size[1]) for shard in self.shards}) or [(0, dim)]

    def check(self, rows: int, dim: int, world_size: int) -> None:
        """Raises ConfigError unless it is what TorchRec makes of such a plan: it buckets ids by the sharding type and
        the number of ranks, not by what the shards say."""
        for rank in (*self.ranks, *(shard.rank for shard in self.shards)):
            if rank >= world_size:
                raise ValueError(f"rank {rank} of {world_size}")
        replicated = self.sharding_type == "data_parallel"
        if replicated != (not self.shards):
            raise ValueError("data_parallel has no shards, every other sharding type has")
        if replicated != (self.compute_kernel == "dense"):
            raise ValueError("data_parallel goes with the kernel dense, every other sharding type with a fused one")
        if self.shards and self.ranks != [shard.rank for shard in self.shards]:
            raise ValueError("its ranks are not those of its shards")
        if self.shards and not (self._columns_are_whole(dim) and self._rows_are_whole(rows, world_size)):
            raise ValueError(f"its shards do not make up a table of {rows} x {dim} that is {self.sharding_type}")

    def _columns_are_whole(self, dim: int) -> bool:
        columns = self.columns(dim)
        starts = [sum(width for _, width in columns[:index]) for index in range(len(columns) + 1)]
        cut = self.sharding_type in ("column_wise", "table_column_wise", "grid_shard")
        fits = [first for first, _ in columns] == starts[:-1] and starts[-1] == dim
        return fits and (cut or len(columns) == 1) and all(width % 4 == 0 for _, width in columns)

    def _rows_are_whole(self, rows: int, world_size: int) -> bool:
        """Blocks of equal size in the order of consecutive ranks, in every column cut; or all rows in one shard."""
        for first, _ in self.columns(0):
            column = [shard for shard in self.shards if shard.offset[1] == first]
            block = math.ceil(rows / len(column))
            starts = [min(index * block, rows) for index in range(len(column) + 1)]
            if [(s.offset[0], s.offset[0] + s.size[0]) for s in column] != list(itertools.pairwise(starts)):
                return False
            if [s.rank for s in column] != list(range(column[0].rank, column[0].rank + len(column))):
                return False
            if self.sharding_type == "row_wise" and len(column) != world_size:
                return False
            if self.sharding_type in ("table_wise", "column_wise", "table_column_wise") and len(column) > 1:
                return False
        return True


class Plan(Strict):
    """Of all tables, for so many ranks."""

    world_size: PositiveInt
    tables: dict[str, TablePlan]

    @classmethod
    def of(cls, plan: ShardingPlan, world_size: int) -> Plan:
        tables: dict[str, TablePlan] = {}
        for module_plan in plan.plan.values():
            assert isinstance(module_plan, EmbeddingModuleShardingPlan)
            tables |= {table: _described(sharding) for table, sharding in module_plan.items()}
        return cls(world_size=world_size, tables=dict(sorted(tables.items())))

    @classmethod
    def read(cls, path: Path, job: JobConfig, world_size: int) -> Plan:
        """Raises ConfigError where it is no plan, or not one of the job's tables for so many ranks."""
        try:
            plan = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"sharding.plan: {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"sharding.plan: {path}: not a plan (not UTF-8)") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(f"sharding.plan: {path}: not a plan ({where}: {first['msg']})") from None
        if plan.world_size != world_size:
            raise ConfigError(
                f"sharding.plan: {path} is for {plan.world_size} ranks, the job has {world_size}; make one for these "
                "with `mtlrec plan --output`, or do without: --set sharding.plan=null"
            )
        if plan.tables.keys() != job.tables.keys():
            odd = ", ".join(sorted(plan.tables.keys() ^ job.tables.keys()))
            raise ConfigError(f"sharding.plan: {path} is of other tables than the job's: {odd}")
        for name, table in plan.tables.items():
            try:
                table.check(job.tables[name].rows, job.tables[name].dim, world_size)
            except ValueError as error:
                raise ConfigError(f"sharding.plan: {path}: {name}: {error}") from None
        return plan

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    def text(self) -> str:
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"

    def of_module(
        self, module: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], device: str, local_world_size: int
    ) -> ShardingPlan:
        """As TorchRec wants it: by the path of each collection of tables.

        Args:
            sharders: a kind of collection each
            device: cpu or cuda; of CUDA, each rank has the one with its number on its node
        """
        by_type = {sharder.module_type: sharder for sharder in sharders}
        plan: dict[str, ModuleShardingPlan] = {}
        for path, part in module.named_modules():
            if type(part) in by_type:
                tables = by_type[type(part)].shardable_parameters(part)
                shardings = {name: _sharding(self.tables[name], device, local_world_size) for name in tables}
                plan[path] = EmbeddingModuleShardingPlan(shardings)
        return ShardingPlan(plan)


def _described(sharding: ParameterSharding) -> TablePlan:
    shards = getattr(sharding.sharding_spec, "shards", [])
    return TablePlan.model_validate(
        {
            "sharding_type": sharding.sharding_type,
            "compute_kernel": sharding.compute_kernel,
            "cache_load_factor": sharding.cache_params and sharding.cache_params.load_factor,
            "ranks": list(sharding.ranks or []),
            "shards": [
                {"rank": one.placement.rank(), "offset": tuple(one.shard_offsets), "size": tuple(one.shard_sizes)}
                for one in shards
            ],
        }
    )


def _sharding(table: TablePlan, device: str, local_world_size: int) -> ParameterSharding:
    def placement(rank: int) -> str:
        return f"rank:{rank}/{device}" + (f":{rank % local_world_size}" if device == "cuda" else "")

    shards = [ShardMetadata(list(one.offset), list(one.size), placement(one.rank)) for one in table.shards]
    factor = table.cache_load_factor
    return ParameterSharding(
        sharding_type=table.sharding_type,
        compute_kernel=table.compute_kernel,
        ranks=table.ranks,
        sharding_spec=EnumerableShardingSpec(shards) if shards else None,
        cache_params=None if factor is None else CacheParams(load_factor=factor),
    )
