"""`mtlrec.diagnose`, `mtlrec.plan` and `mtlrec.bench`: inside a model, tables on machines, speed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from mtlrec.api.jobs import Job, Overrides, check_at_least, check_split, load_job
from mtlrec.api.quiet import quiet
from mtlrec.api.results import BenchResult, DiagnoseResult, PlanResult
from mtlrec.config.file import job_of

BATCHES = 50
"""How many batches a diagnosis takes."""


@quiet
def diagnose(
    run: str | os.PathLike[str],
    split: str = "valid",
    *,
    batches: int = BATCHES,
    slice_by: str | None = None,
    progress: bool = False,
) -> DiagnoseResult:
    """Look into the last checkpoint of a run: gates, experts, gradients, tables, probabilities. Collective.

    Args:
        batches: how many batches of the split to take
        slice_by: a column of the files: each task's AUC within its values
    """
    from mtlrec.diagnosis.diagnosis import diagnose_run
    from mtlrec.diagnosis.warnings import warnings_of
    from mtlrec.distributed.process_group import process_group
    from mtlrec.evaluation.slices import check_column, kept_for_slices
    from mtlrec.training.loading import loader_of
    from mtlrec.training.progress import progress_bars
    from mtlrec.training.sharded import load_run

    check_split(split)
    check_at_least(1, batches=batches)
    run = Path(run)
    job = job_of(run)
    if slice_by is not None:
        check_column(job, split, slice_by)
    with progress_bars(progress), process_group(job.train.device, job.train.timeout_s) as ranks:
        model = load_run(job, run, ranks)
        loader = loader_of(
            job, split, ranks, expected_fingerprints=model.id_fingerprints, keep=kept_for_slices(slice_by)
        )
        diagnosis = diagnose_run(model, loader, job, ranks, batches, slice_by)
        return DiagnoseResult(diagnosis, warnings_of(diagnosis))


@quiet
def plan(
    job: Job,
    *,
    nodes: int = 1,
    gpus_per_node: int = 8,
    hbm_gb: float = 80.0,
    ddr_gb: float = 128.0,
    device: Literal["cuda", "cpu"] = "cuda",
    output: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
) -> PlanResult:
    """How the tables would lie on machines that need not be there: memory, step time by phase, balance.

    Args:
        gpus_per_node: ranks on each node; with device cpu too
        hbm_gb: memory of each GPU
        ddr_gb: host memory for each rank
        output: write the plan to this file, for sharding.plan

    Raises ConfigError where nothing fits, naming the largest tables and what would help.
    """
    import torch

    from mtlrec.distributed.estimate import estimate
    from mtlrec.training.sharded import unsharded

    job = load_job(job, overrides)
    module = unsharded(job, torch.device(device))
    found = estimate(module, job, nodes, gpus_per_node, device, hbm_gb, ddr_gb)
    if output is not None:
        Path(output).write_text(found.plan.text(), encoding="utf-8")
    return PlanResult(found)


@quiet
def bench(
    job: Job,
    *,
    steps: int = 100,
    source: Literal["train", "memory", "random"] = "train",
    trace: str | os.PathLike[str] | None = None,
    rounds: int = 5,
    overrides: Overrides = (),
) -> BenchResult:
    """Train a job for some steps and measure how fast. Keeps nothing of the model. Collective.

    Args:
        steps: how many to time
        source: the job's files, batches of them made beforehand, or random rows
        trace: write the first rank's last profile there
        rounds: how many parts the steps are measured in, at most one per step
    """
    from mtlrec.benchmark.benchmark import bench as measure
    from mtlrec.distributed.process_group import process_group

    check_at_least(5, steps=steps)
    check_at_least(1, rounds=rounds)
    job = load_job(job, overrides)
    with process_group(job.train.device, job.train.timeout_s) as ranks:
        return BenchResult(measure(job, ranks, steps, source, None if trace is None else Path(trace), rounds))
