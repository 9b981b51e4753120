"""What this machine could do at most, measured in the process that is compared with it; and what a step asks for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch

from mtlrec.batch import Batch
from mtlrec.config import JobConfig

PRODUCTS = (256, 512, 1024, 2048, 4096, 8192)
GATHERED_BYTES = 2**28
ROUNDS = 3


@dataclass(frozen=True)
class Ceilings:
    """Of one rank while the others measure too: a large matrix product at the job's precision; rows of the tables' mean
    width, gathered at random from 256 MB; a copy of as much (read and written bytes)."""

    tflops: float
    gather_gb_s: float
    copy_gb_s: float


def measure_ceilings(job: JobConfig, device: torch.device) -> Ceilings:
    dtype = torch.bfloat16 if job.train.precision == "bf16" else torch.float32
    dims = [job.tables[feature.table].dim for feature in job.features.sparse]
    width = max(1, round(statistics.mean(dims)))
    table = torch.zeros(GATHERED_BYTES // (4 * width), width, device=device)
    rows = iter(torch.randint(len(table), (ROUNDS + 1, 2**17), device=device))  # others each time: caches have those
    gathered, other = torch.empty(2**17, width, device=device), torch.empty_like(table)
    gather_s = seconds(lambda: torch.index_select(table, 0, next(rows), out=gathered), device)
    copy_s = seconds(lambda: other.copy_(table), device)
    return Ceilings(
        tflops=_product_tflops(dtype, device),
        gather_gb_s=gathered.nbytes / gather_s / 1e9,
        copy_gb_s=2 * table.nbytes / copy_s / 1e9,
    )


def _product_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Of a product that takes at most half a second: a CPU without units for bfloat16 may be a hundred times slower."""
    best = 0.0
    for size in PRODUCTS:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        took = seconds(lambda a=a, b=b: torch.mm(a, b), device)  # type: ignore[misc]
        best = max(best, 2 * size**3 / took / 1e12)
        if 8 * took > 0.5:
            break
    return best


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of some rounds after a first one."""
    took = []
    for _ in range(ROUNDS + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lookup_bytes(batch: Batch, job: JobConfig, replicated: Set[str]) -> int:
    """Of the rows of tables that a batch's ids move: read for every id, and each distinct one read and written by the
    fused update, which `replicated` tables do not have."""
    by_feature = batch.ids()
    moved = 0
    for name, table in job.tables.items():
        ids = [by_feature[one.name].values() for one in job.features.sparse if one.table == name]
        if ids:
            of_table = torch.cat(ids)
            updated = 0 if name in replicated else 2 * len(of_table.unique())
            moved += 4 * table.dim * (len(of_table) + updated)
    return moved
