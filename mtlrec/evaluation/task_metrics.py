"""Metrics per task over its own sample space, exact-once and summed over ranks: what the loss masks, they mask.

torchrec.metrics computes the same numbers (tests compare them), but over a window and with an AUC state that it does
not save; in evaluation every row must count exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.evaluation.calibration import Calibration
from mtlrec.losses import TaskLosses
from mtlrec.metrics import ENTIRE, Metric, Metrics, metrics_of
from mtlrec.metrics.binary import BinarySums, calibration_error, logit_of
from mtlrec.metrics.metric import Sums, TaskRows, sum_over_ranks
from mtlrec.models.build import build_task_losses
from mtlrec.models.train_module import StepOutput

LABEL_FAULTS = ("inconsistent_labels", "missing_labels")
"""Of a task with a parent: rows whose label broke the funnel, and the parent's positives without a label."""


class Population:
    """The metrics of one task over one set of rows."""

    def __init__(self, metrics: Sequence[type[Metric]], device: torch.device) -> None:
        self.metrics = list(metrics)
        self.sums: dict[type[Sums], Sums] = {kind: kind(device) for kind in dict.fromkeys(m.sums for m in metrics)}

    def update(self, rows: TaskRows) -> None:
        for sums in self.sums.values():
            sums.update(rows)

    def over_ranks(self) -> Population:
        """Collective."""
        total = Population([], torch.device("cpu"))
        total.metrics = self.metrics
        total.sums = {kind: sums.over_ranks() for kind, sums in self.sums.items()}
        return total

    def compute(self) -> dict[str, float]:
        values = {metric.name: metric.value(self.sums[metric.sums]) for metric in self.metrics}
        return {
            metric.name: int(values[metric.name]) if metric.is_count else values[metric.name] for metric in self.metrics
        }

    @property
    def binary(self) -> BinarySums:
        sums = self.sums[BinarySums]
        assert isinstance(sums, BinarySums)
        return sums


class TaskMetrics:
    """Accumulates `StepOutput`s; `compute` gives {task: {metric: value}}.

    Every task has the metrics of `METRICS` that are for it, and the job's own. A task with a parent also has some of
    p(task) over all impressions, and `LABEL_FAULTS`. Rows count by their weights. A figure that the rows cannot give
    (no rows, one class) is NaN.

    Args:
        has_groups: whether batches have `group_ids`
        extra: metrics of the job's own
    """

    def __init__(
        self,
        tasks: Sequence[str],
        losses: TaskLosses,
        has_parent: Sequence[bool],
        device: torch.device,
        has_groups: bool = False,
        extra: Sequence[type[Metric]] = (),
    ) -> None:
        self.tasks, self.losses = list(tasks), losses
        of_tasks = [metrics_of(loss.is_probability, has_groups, extra) for loss in losses]
        self.own = [Population(metrics, device) for metrics in of_tasks]
        self.entire = {
            task: Population([metric for metric in of_tasks[task] if metric.is_also_entire], device)
            for task, parent in enumerate(has_parent)
            if parent
        }
        self.faults = torch.zeros(2, len(self.tasks), dtype=torch.float64, device=device)

    @staticmethod
    def of(job: JobConfig, device: torch.device) -> TaskMetrics:
        return TaskMetrics(
            tasks=[task.name for task in job.tasks],
            losses=build_task_losses(job),
            has_parent=[task.given is not None for task in job.tasks],
            device=device,
            has_groups=job.metrics.group_by is not None,
            extra=job.metrics.extra_metrics,
        )

    @torch.no_grad()
    def update(self, step: StepOutput) -> None:
        outputs, batch = step.outputs, step.batch
        predictions = self.losses.predictions(outputs)
        self.faults += batch.label_faults
        for task in range(len(self.tasks)):
            log_p, log_not_p = outputs.log_p[:, task], outputs.log_not_p[:, task]
            self.own[task].update(_rows(batch, task, batch.in_space, predictions, log_p, log_not_p))
            if task in self.entire:
                of_impressions = logit_of(outputs.log_entire_p[:, task])
                self.entire[task].update(_rows(batch, task, batch.entire_space, predictions, *of_impressions))

    def compute(self, calibration: Calibration | None = None) -> Metrics:
        """Collective: every rank calls it and gets the same. What was accumulated stays as it is.

        With a calibration also calibrated_ece, of the probabilities over all impressions as it maps them.
        """
        faults = sum_over_ranks(self.faults)
        metrics: Metrics = {}
        for task, name in enumerate(self.tasks):
            own = predicted = self.own[task].over_ranks()
            metrics[name] = own.compute()
            if task in self.entire:
                predicted = self.entire[task].over_ranks()
                metrics[name] |= {ENTIRE + metric: value for metric, value in predicted.compute().items()}
                metrics[name] |= dict(zip(LABEL_FAULTS, faults[:, task].int().tolist(), strict=True))
            if calibration is not None and self.losses.is_probability[task]:
                histogram = predicted.binary.histogram
                metrics[name]["calibrated_ece"] = calibration_error(histogram, calibration.of(name))
        return metrics

    def predicted(self, task: int) -> BinarySums:
        """Collective. Of p(task) over all impressions, which is what `predict` writes."""
        return self.entire.get(task, self.own[task]).binary.over_ranks()


def _rows(batch: Batch, task: int, space: Tensor, predictions: Tensor, log_p: Tensor, log_not_p: Tensor) -> TaskRows:
    weight = space[:, task] * batch.sample_weights[:, task]
    return TaskRows(batch.targets[:, task], weight, predictions[:, task], log_p, log_not_p, batch.group_ids)
