"""Evaluation: every row of a split exactly once, metrics summed over ranks."""

from __future__ import annotations

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.config import JobConfig
from mtlrec.data.collate import Collator
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.training.metrics import Metrics, TaskMetrics


def evaluation_loader(job: JobConfig, split: str, ranks: Ranks) -> Loader:
    """The rank's rows of train, valid or test, in the files' order. Raises DataError where files are missing."""
    return Loader(job.data, getattr(job.data, split), Collator.of(job), ranks.rank, ranks.world_size)


@torch.no_grad()
def evaluate(model: DistributedModelParallel, loader: Loader, job: JobConfig, ranks: Ranks) -> Metrics:
    """Collective. A pipeline that holds the model must be detached before."""
    metrics = task_metrics(job, ranks.device)
    was_training = model.training
    model.eval()
    for batch in loader.epoch():
        _, step = model(batch.to(ranks.device))
        metrics.update(step)
    model.train(was_training)
    return metrics.compute()


def task_metrics(job: JobConfig, device: torch.device) -> TaskMetrics:
    return TaskMetrics(
        tasks=[task.name for task in job.tasks],
        is_binary=[task.kind == "binary" for task in job.tasks],
        has_parent=[task.given is not None for task in job.tasks],
        device=device,
    )
