"""What the planner is offered: whole tables on one rank and on CPU, every type where these do not fit."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchrec.distributed.planner import Topology

from benchmarks import jobs
from mtlrec.distributed.process_group import process_group
from mtlrec.distributed.sharding import GIB, _host_memory, planned
from mtlrec.training.sharded import unsharded
from tests.support.toy import toy_job


def types(world_size: int, memory: int, rows: int = 100_000) -> list[str]:
    """Of 26 tables on CPU, the first of so many rows."""
    job = jobs.job(Path(), [rows] + [100_000] * 25)
    topology = Topology(
        world_size=world_size, local_world_size=world_size, compute_device="cpu", hbm_cap=memory, ddr_cap=memory
    )
    (tables,) = planned(unsharded(job, torch.device("cpu")), job, topology).plan.values()
    return [tables[name].sharding_type for name in jobs.TABLE_NAMES]  # type: ignore[index]


def test_one_rank_has_whole_tables() -> None:
    assert types(1, 8 * GIB) == ["table_wise"] * 26


def test_ranks_on_cpu_have_whole_tables_where_these_fit() -> None:
    assert set(types(2, 8 * GIB)) <= {"table_wise", "data_parallel"}
    assert types(2, 4 * GIB, rows=70_000_000)[0] == "row_wise"  # 4.5 GB


@pytest.mark.parametrize("local", [1, 2, 4])
def test_a_rank_on_cpu_plans_with_its_share_of_the_host(local: int) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with process_group("cpu") as ranks:
        assert _host_memory(toy_job(), replace(ranks, local_world_size=local)) == whole // local
        assert _host_memory(toy_job(sharding={"ddr_gb": 2}), ranks) == 2 * GIB
