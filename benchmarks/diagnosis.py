"""What does a diagnosis during training cost? What `train.diagnose_every` adds, over the steps between two of them.

    python benchmarks/diagnosis.py --output benchmarks/results/diagnosis.json

Random batches of each recipe, in one process; a round is `--steps` steps, then a diagnosis as the trainer makes it: the
pipeline detached, the model diagnosed on a batch, figures and heatmaps written to TensorBoard, and the pipeline filled
anew by the step that follows. A figure is the median over rounds; the share is a diagnosis's steps over
the steps that the default leaves between two.
"""

import argparse
import itertools
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jobs
import report
import torch

from mtlrec.benchmark.random_batches import random_batches
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config import TrainConfig
from mtlrec.diagnosis.board import write_diagnosis
from mtlrec.diagnosis.diagnosis import diagnose_batches
from mtlrec.distributed.process_group import process_group
from mtlrec.training.step import TrainingStep
from mtlrec.training.telemetry import Telemetry

EVERY = TrainConfig().diagnose_every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", nargs="+", default=["feed/shared_bottom", "feed/mmoe", "feed/ple", "kuairand/adatt"]
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    cells = {recipe: measure(recipe, options.steps, options.rounds) for recipe in options.recipe}
    hardware = f"{report.processor()}, {torch.get_num_threads()} threads"
    command = shlex.join(["python", "benchmarks/diagnosis.py", *sys.argv[1:]])
    if options.output:
        report.write({"command": command, "hardware": hardware, "cells": cells}, options.output)
    print(
        f"{hardware}, a diagnosis every {EVERY} steps\n\n| recipe | a step, ms | a diagnosis, in steps | of training |"
    )
    print("|---|--:|--:|--:|")
    for recipe, cell in cells.items():
        print(f"| {recipe} | {cell['step_ms']:.1f} | {cell['diagnosis_in_steps']:.1f} | {cell['share']:.2%} |")


def measure(recipe: str, steps: int, rounds: int) -> dict[str, Any]:
    job = jobs.recipe(recipe, ["train.device=cpu"])
    with process_group("cpu") as ranks, tempfile.TemporaryDirectory() as folder:
        step = TrainingStep(job, ranks, 10_000, EVERY)
        made = random_batches(job, 8, seed=0)
        batches = itertools.cycle(made)
        step_ms, diagnoses = [], []
        with Telemetry(Path(folder), ranks) as telemetry:
            telemetry.open(0, EVERY)
            for number in range(rounds + 1):  # the first warms up
                started = time.perf_counter()
                for _ in range(steps):
                    step(batches, number)
                seconds = (time.perf_counter() - started) / steps
                started = time.perf_counter()
                step.pipeline.detach()
                write_diagnosis(telemetry, number, diagnose_batches(step.model, made[:1], job, ranks))
                step(batches, number)
                diagnoses.append((time.perf_counter() - started) / seconds - 1)
                step_ms.append(1000 * seconds)
    diagnosis_steps = statistics.median(diagnoses[1:])
    return {
        "step_ms": round(statistics.median(step_ms[1:]), 2),
        "diagnosis_in_steps": round(diagnosis_steps, 2),
        "diagnosis_in_steps_all": [round(one, 2) for one in diagnoses[1:]],
        "share": round(diagnosis_steps / EVERY, 5),
    }


if __name__ == "__main__":
    main()
