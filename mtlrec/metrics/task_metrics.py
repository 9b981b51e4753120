"""Metrics per task over its own sample space, exact-once and summed over ranks: what the loss masks, they mask.

torchrec.metrics computes the same numbers (tests compare them), but over a window and with an AUC state that it does
not save; in evaluation every row must count exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlrec.config import JobConfig
from mtlrec.losses import TaskLosses
from mtlrec.metrics.binary import BinaryTally, calibration_error, logit_of, ratio, sum_over_ranks
from mtlrec.metrics.calibration import Calibration
from mtlrec.metrics.grouped_auc import GroupedAUC
from mtlrec.models.build import build_task_losses
from mtlrec.models.train_module import StepOutput

Metrics = dict[str, dict[str, float]]
ENTIRE = ("auc", "ne", "calibration", "ece")
"""What is also reported of p(task) over all impressions, where a task has a parent."""


class TaskMetrics:
    """Accumulates `StepOutput`s; `compute` gives {task: {metric: value}}.

    Of probabilities: those of `BinaryTally.compute`; with groups gauc; with a parent also entire_auc, entire_ne,
    entire_calibration, entire_ece, of p(task) over all impressions, inconsistent_labels, the rows whose label broke the
    funnel, and missing_labels, the parent's positives without one. Of other tasks:
    mse, mae, mean, predicted_mean, rows. Rows count by their weights. A figure that the rows cannot give (no rows, one
    class) is NaN.
    """

    def __init__(
        self, tasks: Sequence[str], losses: TaskLosses, has_parent: Sequence[bool], device: torch.device
    ) -> None:
        self.tasks, self.losses, self.has_parent = list(tasks), losses, list(has_parent)
        self.own = {task: BinaryTally(device) for task, loss in enumerate(losses) if loss.is_probability}
        self.entire = {task: BinaryTally(device) for task, parent in enumerate(has_parent) if parent}
        self.groups: dict[int, GroupedAUC] = {}
        self.errors = torch.zeros(len(self.tasks), 6, dtype=torch.float64, device=device)
        self.faults = torch.zeros(2, len(self.tasks), dtype=torch.float64, device=device)

    @staticmethod
    def of(job: JobConfig, device: torch.device) -> TaskMetrics:
        return TaskMetrics(
            tasks=[task.name for task in job.tasks],
            losses=build_task_losses(job),
            has_parent=[task.given is not None for task in job.tasks],
            device=device,
        )

    @torch.no_grad()
    def update(self, step: StepOutput) -> None:
        outputs, batch = step.outputs, step.batch
        space = batch.in_space * batch.sample_weights
        entire = batch.entire_space * batch.sample_weights
        predictions = self.losses.predictions(outputs)
        self.faults += batch.label_faults
        for task, loss in enumerate(self.losses):
            target, weight = batch.targets[:, task], space[:, task]
            if not loss.is_probability:
                self._add_errors(task, predictions[:, task], target, weight.double())
                continue
            log_p, log_not_p = outputs.log_p[:, task], outputs.log_not_p[:, task]
            self.own[task].update(log_p, log_not_p, target, weight)
            if task in self.entire:
                self.entire[task].update(*logit_of(outputs.log_entire_p[:, task]), target, entire[:, task])
            if batch.group_ids is not None:
                self.groups.setdefault(task, GroupedAUC()).update(batch.group_ids, log_p - log_not_p, target, weight)

    def _add_errors(self, task: int, predicted: Tensor, target: Tensor, weight: Tensor) -> None:
        error = (predicted.where(weight > 0, 0.0) - target).double()
        columns = [(weight > 0).double(), weight, weight * error.square(), weight * error.abs(), weight * target]
        columns.append(weight * predicted.where(weight > 0, 0.0))
        self.errors[task] += torch.stack([column.double().sum() for column in columns])

    def compute(self, calibration: Calibration | None = None) -> Metrics:
        """Collective: every rank calls it and gets the same. What was accumulated stays as it is.

        With a calibration also calibrated_ece, of the probabilities over all impressions as it maps them.
        """
        errors, faults = sum_over_ranks(self.errors), sum_over_ranks(self.faults)
        metrics: Metrics = {}
        for task, name in enumerate(self.tasks):
            if task not in self.own:
                metrics[name] = _regression(errors[task])
                continue
            predicted = own = self.own[task].over_ranks()
            metrics[name] = own.compute()
            if task in self.groups:
                metrics[name]["gauc"] = self.groups[task].compute()
            if task in self.entire:
                predicted = self.entire[task].over_ranks()
                metrics[name] |= {f"entire_{key}": value for key, value in predicted.compute().items() if key in ENTIRE}
                for index, fault in enumerate(("inconsistent_labels", "missing_labels")):
                    metrics[name][fault] = int(faults[index, task].item())
            if calibration is not None:
                metrics[name]["calibrated_ece"] = calibration_error(predicted.histogram, calibration.of(name))
        return metrics

    def predicted(self, task: int) -> BinaryTally:
        """Collective. Of p(task) over all impressions, which is what `predict` writes."""
        return self.entire.get(task, self.own[task]).over_ranks()


def _regression(sums: Tensor) -> dict[str, float]:
    rows, weight, squared, absolute, observed, predicted = sums.tolist()
    return {
        "mse": ratio(squared, weight),
        "mae": ratio(absolute, weight),
        "mean": ratio(observed, weight),
        "predicted_mean": ratio(predicted, weight),
        "rows": int(rows),
    }
