"""More ranks: samples per second, what they send each other, and what the planner expects of many GPUs.

    python benchmarks/scale.py --output benchmarks/results/scale.json

The job is that of `train.py` (PLE, 26 tables of 100,000 rows), measured by `mtlrec bench --source memory` on 1, 2 and 4
ranks of this machine, in turns, medians over the rounds. Read it by

    threads_per_rank   the cores divided among the ranks (fixed total), or one each (fixed per rank); beyond the
                       machine's cores ranks share them, which says what that costs, no more
    batch_per_rank     4096 (weak scaling), or 4096 over all ranks (strong)
    mfu                the share of the speed that large products reach on all ranks together just then: where the
                       machine is not quiet, this compares better than samples per second

`sent_mb` is what leaves a rank in a step: of an all-to-all all but the rank's own part, of an all-reduce 2 (W - 1) / W
of the tensor, as a ring sends it. `least_mb` is what must: ids and lengths of the other ranks' tables, pooled
embeddings and their gradients, the dense gradients.

The extrapolation is an estimate and labeled so: TorchRec's planner gives the embedding part of a step on 8, 64 and 512
GPUs, the dense part takes its products at an assumed speed, and the all-reduce goes over an assumed network. None of it
was run.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import jobs
from benchmarks.report import processor
from benchmarks.train import BATCH, bench
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config import JobConfig
from mtlrec.config.file import load_config
from mtlrec.distributed.estimate import estimate
from mtlrec.models.train_module import TrainModule
from mtlrec.training.sharded import unsharded

ROWS, DIM = 100_000, 16
WORLDS = (1, 2, 4)
GPU = {"hbm_gb": 80.0, "tflops": 60.0, "all_reduce_gb_s": 40.0, "gpus_per_node": 8}
"""Assumed: float32 products on an H100-like GPU at half of its TF32 peak, and a network of 400 Gbit/s per GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".demo/bench_scale"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    quiet_libraries()
    root = jobs.write_files(options.root, [ROWS] * jobs.TABLES, 64 * BATCH, BATCH)
    cores = os.cpu_count() or 1
    variants = [
        (world, threads, batch_size)
        for world in WORLDS
        for threads in sorted({max(1, cores // world), 1})
        for batch_size in sorted({BATCH, BATCH // world})
    ]
    found: dict[tuple[int, int, int], list[dict[str, Any]]] = {variant: [] for variant in variants}
    for round_ in range(options.rounds):
        for world, threads, batch_size in variants:
            job = jobs.job(root, [ROWS] * jobs.TABLES, batch_size=batch_size)
            one = bench(job, options.steps, "memory", "--world-size", str(world), threads=threads)
            found[world, threads, batch_size].append(one)
            said = f"{world} x {threads} threads, batches of {batch_size}: {one['samples_per_s']:,.0f} samples/s"
            print(f"round {round_ + 1}, {said}, mfu {one['mfu']:.3f}", file=sys.stderr, flush=True)
    result = {
        "command": f"python benchmarks/scale.py {' '.join(sys.argv[1:])}",
        "hardware": f"{processor()}, {cores} cores",
        "measured": [summary(rounds) for rounds in found.values()],
        "estimate": {"assumed": GPU, "criteo": extrapolated("criteo", (8, 64, 512))},
    }
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    world = rounds[0]["world_size"]
    job = jobs.job(Path(), [ROWS] * jobs.TABLES, batch_size=rounds[0]["batch_size"])
    sent = sent_mb(rounds[0]["communicated_mb"], world)
    stages = rounds[0]["split_ms"]
    return {
        "ranks": world,
        "threads_per_rank": rounds[0]["threads"],
        "batch_per_rank": rounds[0]["batch_size"],
        "samples_per_s": round(statistics.median(one["samples_per_s"] for one in rounds)),
        "mfu": statistics.median(one["mfu"] for one in rounds),
        "product_tflops": [world * one["ceilings"]["tflops"] for one in rounds],
        "sent_mb": sent,
        "least_mb": least_mb(job, world),
        "split_ms": {stage: statistics.median(one["split_ms"][stage] for one in rounds) for stage in stages},
    }


def sent_mb(communicated: dict[str, float], world: int) -> float:
    share = (world - 1) / world
    times = {"alltoall": share, "reduce_scatter": share, "allreduce": 2 * share, "allgather": world - 1}
    return sum(size * times[kind] for kind, size in communicated.items())


def dense_parameters(module: TrainModule) -> list[nn.Parameter]:
    table_of = module.model.sparse_arch.table_of
    return [parameter for name, parameter in module.named_parameters() if table_of(name) is None]


def least_mb(job: JobConfig, world: int) -> float:
    """Of whole tables spread evenly; an id is 8 bytes, a length 4."""
    batch, tables = job.data.batch_size, len(job.features.sparse)
    ids = batch * tables * 12
    pooled = 2 * batch * tables * DIM * 4
    dense = 4 * sum(p.numel() for p in dense_parameters(unsharded(job, torch.device("cpu"))))
    return ((ids + pooled) * (world - 1) / world + dense * 2 * (world - 1) / world) / 1e6


def extrapolated(recipe: str, gpus: tuple[int, ...]) -> list[dict[str, float]]:
    """ESTIMATES: the embedding part by TorchRec's planner, beside the dense part and its all-reduce."""
    job = load_config(recipe, [])
    module = unsharded(job, torch.device("cuda"))
    weights = dense_parameters(module)
    multiplied = sum(p.numel() for p in weights if p.dim() >= 2)
    dense_ms = 1e3 * 6 * multiplied * job.data.batch_size / (1e12 * GPU["tflops"])
    rows = []
    for count in gpus:
        per_node = int(GPU["gpus_per_node"])
        plan = estimate(module, job, count // per_node, per_node, "cuda", GPU["hbm_gb"], 128.0)
        reduced_ms = (
            1e3 * 2 * (count - 1) / count * 4 * sum(p.numel() for p in weights) / (1e9 * GPU["all_reduce_gb_s"])
        )
        embedding_ms = plan.slowest.total_ms
        # The all-reduce hides behind backward, two thirds of the dense part; the tables hide behind nothing.
        step_ms = embedding_ms + dense_ms / 3 + max(2 * dense_ms / 3, reduced_ms)
        rows.append(
            {
                "gpus": count,
                "embedding_ms": embedding_ms,
                "dense_ms": dense_ms,
                "all_reduce_ms": reduced_ms,
                "samples_per_s": 1e3 * count * job.data.batch_size / step_ms,
                "imbalance": plan.imbalance,
            }
        )
    return rows


if __name__ == "__main__":
    main()
