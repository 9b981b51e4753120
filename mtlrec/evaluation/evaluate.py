"""Evaluation: every row of a split exactly once, metrics summed over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mtlrec.compat.fbgemm.fused_lookups import uncounted
from mtlrec.config import JobConfig
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import ConfigError, NonFiniteError
from mtlrec.evaluation.calibration import Calibration, Method, fit
from mtlrec.evaluation.task_metrics import TaskMetrics
from mtlrec.models.train_module import StepOutput
from mtlrec.training.loading import log_skipped_rows
from mtlrec.training.progress import watched
from mtlrec.training.sharded import autocast


def evaluate(
    model: nn.Module,
    loader: Loader,
    job: JobConfig,
    ranks: Ranks,
    progress: str | None = None,
    after_batch: Callable[[StepOutput], None] = lambda step: None,
) -> TaskMetrics:
    """Collective. What the rows of a split add up to; a pipeline that holds the model must be detached before.

    Args:
        model: batch -> (loss, StepOutput)
        progress: what to call this on the screen; nothing is shown without it
        after_batch: is given what the model made of each batch; may raise, to end the evaluation

    Raises NonFiniteError where the model's output is, naming the batch's files.
    """
    metrics = TaskMetrics.of(job, ranks.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), uncounted(model):
        for batch in watched(loader.epoch(), loader.steps_per_epoch, progress or "", ranks.is_first and bool(progress)):
            with autocast(job, ranks.device):
                _, step = model(batch.to(ranks.device))
            check_finite(metrics.losses.predictions(step.outputs), job, step.batch.origin)
            metrics.update(step)
            ranks.liveness.tick()
            after_batch(step)
    model.train(was_training)
    log_skipped_rows(loader, ranks)
    return metrics


def fit_calibration(metrics: TaskMetrics, method: Method) -> Calibration:
    """Collective. A map per binary task; a task of one class only is left out, and ValueError raised where all are."""
    tallies = {
        name: metrics.predicted(task) for task, name in enumerate(metrics.tasks) if metrics.losses.is_probability[task]
    }
    maps = {name: fit(method, tally.histogram_of_rows()) for name, tally in tallies.items()}
    fitted = {name: one for name, one in maps.items() if one is not None}
    if not fitted:
        raise ConfigError("--calibrate: no binary task has rows of both labels in the valid split; nothing was stored")
    rows = max(int(tallies[name].totals[0].item()) for name in fitted)
    return Calibration(method=method, rows=rows, maps=fitted)


def check_finite(values: torch.Tensor, job: JobConfig, origin: str) -> None:
    """values [B, T]: one column per task."""
    fine = torch.isfinite(values).all(dim=0).tolist()
    if not all(fine):
        tasks = ", ".join(task.name for task, finite in zip(job.tasks, fine, strict=True) if not finite)
        raise NonFiniteError(f"the model's output for {tasks} is not finite; rows from {origin}")
