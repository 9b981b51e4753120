"""What does balancing cost? A training step under every kind of weighting, against static weights.

    python benchmarks/balancing.py --root .demo/feed --output benchmarks/results/balancing.json
    torchrun --nproc_per_node 2 benchmarks/balancing.py --root .demo/feed --output balancing_2.json

The kinds take turns, `--steps` steps each, in one process; a figure is the median over rounds of the ratio to static in
the same round. Batches are read beforehand. Beside it, on more than one rank, what the one small all-reduce of the
losses costs by itself.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import report
import torch
import torch.distributed as dist

from mtlrec.batch import Batch
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.distributed.process_group import Ranks, on_first_rank, process_group
from mtlrec.training.loading import loader_of
from mtlrec.training.step import TrainingStep

KINDS = ["static", "decay", "uncertainty", "dwa", "pcgrad", "mgda", "upgrad", "aligned", "cagrad"]


def main() -> None:
    options = parse_arguments()
    quiet_libraries()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", 1))))
    with process_group("cpu") as ranks:
        results = measure(options, ranks)
        if ranks.is_first:
            if options.output:
                report.write(results, options.output)
            print("\n".join(table(results)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".demo/feed"), help="a synthetic feed")
    parser.add_argument("--recipe", nargs="+", default=["feed/shared_bottom", "feed/mmoe", "feed/adatt"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=1024, help="rows per rank")
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every job")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def measure(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    on_first_rank(ranks, lambda: report.synth_feed(options.root, "--rows", "300000"))
    launcher = ["torchrun", "--nproc_per_node", str(ranks.world_size)] if ranks.world_size > 1 else ["python"]
    results: dict[str, Any] = {
        "command": shlex.join([*launcher, "benchmarks/balancing.py", *sys.argv[1:]]),
        "hardware": f"{report.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads a rank",
        "ranks": ranks.world_size,
        "batch_size": options.batch_size,
        "all_reduce_ms": all_reduce_ms(),
        "cells": {},
    }
    for recipe in options.recipe:
        runners = {kind: Runner(recipe, options, ranks, f"loss.weighting={{kind: {kind}}}") for kind in KINDS}
        batches = runners["static"].batches(options.steps)
        for runner in runners.values():
            runner.seconds_per_step(batches)  # warms up
        rounds = []
        for number in range(options.rounds):
            order = KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]
            rounds.append({kind: 1000 * runners[kind].seconds_per_step(batches) for kind in order})
        results["cells"][recipe] = {
            kind: {
                "ms": round(statistics.median(one[kind] for one in rounds), 2),
                "over_static": round(statistics.median(one[kind] / one["static"] for one in rounds), 3),
            }
            for kind in KINDS
        }
    return results


class Runner:
    """One job's training step, ready to go through batches made beforehand."""

    def __init__(self, recipe: str, options: argparse.Namespace, ranks: Ranks, *overrides: str) -> None:
        data = [f"data.root={options.root}", f"data.batch_size={options.batch_size}"]
        job = jobs.recipe(recipe, [*data, *options.set, *overrides])
        self.loader = loader_of(job, "train", ranks)
        self.take_step = TrainingStep(job, ranks, options.steps, self.loader.steps_per_epoch)

    def batches(self, count: int) -> list[Batch]:
        return [batch for batch, _ in zip(self.loader.epoch(), range(count), strict=False)]

    def seconds_per_step(self, batches: list[Batch]) -> float:
        stream, started = iter(batches), time.perf_counter()
        for step in range(len(batches)):
            self.take_step(stream, step)
        return (time.perf_counter() - started) / len(batches)


def all_reduce_ms() -> float:
    values, seconds = torch.zeros(3, 4), []
    for _ in range(200):
        started = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 3)


def table(results: dict[str, Any]) -> list[str]:
    recipes = list(results["cells"])
    head = f"{results['hardware']}, {results['ranks']} ranks, batch {results['batch_size']}, "
    lines = [head + f"all-reduce of the losses {results['all_reduce_ms']} ms", ""]
    lines += ["| weighting | " + " | ".join(recipes) + " |", "|---|" + "--:|" * len(recipes)]
    for kind in KINDS:
        cells = [results["cells"][recipe][kind] for recipe in recipes]
        lines.append(f"| {kind} | " + " | ".join(f"{c['over_static']:.2f} ({c['ms']:.1f} ms)" for c in cells) + " |")
    return lines


if __name__ == "__main__":
    main()
