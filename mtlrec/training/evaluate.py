"""Evaluation: every row of a split exactly once, metrics summed over ranks."""

from __future__ import annotations

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.config import JobConfig
from mtlrec.data.collate import Collator
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.training.metrics import Metrics, TaskMetrics
from mtlrec.training.sharded import autocast


def evaluation_loader(job: JobConfig, split: str, ranks: Ranks) -> Loader:
    """The rank's rows of train, valid or test, in the files' order. Raises DataError where files are missing."""
    if not getattr(job.data, split):
        raise ValueError(f"data.{split} is empty; there is nothing to evaluate")
    return Loader(job.data, getattr(job.data, split), Collator.of(job), ranks.rank, ranks.world_size)


@torch.no_grad()
def evaluate(model: DistributedModelParallel, loader: Loader, job: JobConfig, ranks: Ranks) -> Metrics:
    """Collective. A pipeline that holds the model must be detached before.

    Raises NonFinite where the model's output is, naming the batch's files.
    """
    metrics = task_metrics(job, ranks.device)
    was_training = model.training
    model.eval()
    for batch in loader.epoch():
        with autocast(job, ranks.device):
            _, step = model(batch.to(ranks.device))
        check_finite(step.outputs.value, job, step.origin)
        metrics.update(step)
    model.train(was_training)
    return metrics.compute()


class NonFinite(RuntimeError):
    """A loss or an output became NaN or infinite; the message names the tasks and the files."""


def check_finite(values: torch.Tensor, job: JobConfig, origin: str) -> None:
    """values [B, T]: one column per task."""
    fine = torch.isfinite(values).all(dim=0).tolist()
    if not all(fine):
        tasks = ", ".join(task.name for task, finite in zip(job.tasks, fine, strict=True) if not finite)
        raise NonFinite(f"the model's output for {tasks} is not finite; rows from {origin}")


def task_metrics(job: JobConfig, device: torch.device) -> TaskMetrics:
    return TaskMetrics(
        tasks=[task.name for task in job.tasks],
        is_binary=[task.kind == "binary" for task in job.tasks],
        has_parent=[task.given is not None for task in job.tasks],
        device=device,
    )
