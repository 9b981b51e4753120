"""Samples per second of the demo's job for every kind of fusion, on one process.

    python benchmarks/throughput.py --root .demo/feed --rounds 3 --json

Batches are read from Parquet before the clock starts: this measures the step (lookup, dense forward and backward, fused
update), not the reader. The kinds are interleaved and each gets the median of its rounds, because a shared machine is
never equally fast twice; ratios to shared_bottom are what to compare. Where the data set is missing it is made.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtlrec.batch import Batch
from mtlrec.cli import quiet_libraries
from mtlrec.config.file import load_config, recipes
from mtlrec.data import synthetic
from mtlrec.distributed.process_group import Ranks, process_group
from mtlrec.training.loading import loader_of
from mtlrec.training.optim import Optimizers
from mtlrec.training.sharded import build_sharded

KINDS = [name.removeprefix("feed_") for name in recipes() if name.startswith("feed_")]
BASELINE = "shared_bottom"


class Runner:
    """One job's model and pipeline, ready to step through batches made beforehand."""

    def __init__(self, recipe: str, options: argparse.Namespace, ranks: Ranks, *overrides: str) -> None:
        data = [f"data.root={options.root}", f"data.batch_size={options.batch_size}"]
        job = load_config(recipe, [*data, *options.set, *overrides])
        model = build_sharded(job, ranks)
        self.optimizers = Optimizers(model.module, job, total_steps=options.steps)
        self.pipeline: Any = TrainPipelineSparseDist(model.module, self.optimizers.combined, ranks.device)
        self.loader = loader_of(job, "train", ranks)

    def batches(self, count: int) -> list[Batch]:
        return [batch for batch, _ in zip(self.loader.epoch(), range(count), strict=False)]

    def samples_per_second(self, batches: list[Batch]) -> float:
        stream, rows = iter(batches), sum(len(batch) for batch in batches)
        started = time.perf_counter()
        for _ in batches:
            self.pipeline.progress(stream)
        return rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".demo/feed"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every job")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.root / "schema.json").exists():
        synthetic.feed(options.root, rows=300_000)
    quiet_libraries()
    with process_group("cpu") as ranks:
        runners = {kind: Runner(f"feed_{kind}", options, ranks) for kind in KINDS}
        batches = runners[BASELINE].batches(options.steps)
        for runner in runners.values():
            runner.samples_per_second(batches[:5])  # the first steps build the pipeline
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(options.rounds):
            for kind, runner in runners.items():
                rates[kind].append(runner.samples_per_second(batches))
                print(f"round {number + 1}, {kind}: {rates[kind][-1]:,.0f} samples/s", file=sys.stderr, flush=True)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "samples_per_s": medians}))
        return
    print(f"batch {options.batch_size}, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    for kind, median in medians.items():
        print(f"{kind:15} {median:10,.0f} samples/s   {median / medians[BASELINE]:.2f} of {BASELINE}")


if __name__ == "__main__":
    main()
