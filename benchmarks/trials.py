"""Test metrics of many small trainings, each a trial of `mtlrec compare`; finished trials are not run again."""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jobs
from report import processor

from mtlrec.comparison.trials import Result, Trial, Trials
from mtlrec.config import JobConfig


class NamedJob(NamedTuple):
    name: str
    job: JobConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="how many trainings run at a time")
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every job")
    parser.add_argument("--trials", type=Path, help="where trainings are kept (default: ROOT/trials)")
    parser.add_argument("--output", type=Path, required=True)


def candidate(name: str, recipe: str, overrides: Sequence[str]) -> NamedJob:
    return NamedJob(name, jobs.recipe(recipe, overrides))


def test_metrics(candidates: Sequence[NamedJob], options: argparse.Namespace) -> dict[str, Any]:
    """By `NAME/SEED`: by task, by metric; None for what the rows cannot give. Exits if a training diverged."""
    # Seeds outermost: what is there after an interruption is the whole table, of fewer seeds.
    trials = [Trial(one.name, 1.0, seed) for seed in range(options.seeds) for one in candidates]
    metrics: dict[str, Any] = {}

    def ended(trial: Trial, result: Result, _was_there: bool) -> None:
        if result.diverged:
            raise SystemExit(f"{trial}: {result.diverged}")
        metrics[f"{trial.candidate}/{trial.seed}"] = without_nan(result.metrics["test"])
        print(f"{trial}: done", file=sys.stderr, flush=True)

    with Trials(options.trials or options.root / "trials", candidates, options.jobs) as runner:
        runner.run(trials, ended)
    return {f"{trial.candidate}/{trial.seed}": metrics[f"{trial.candidate}/{trial.seed}"] for trial in trials}


def without_nan(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """For JSON, which has no NaN."""
    return {
        task: {name: None if math.isnan(value) else value for name, value in by_name.items()}
        for task, by_name in metrics.items()
    }


def hardware(options: argparse.Namespace) -> str:
    return f"{processor()}, {os.cpu_count()} cores, {options.jobs} trainings at a time"
