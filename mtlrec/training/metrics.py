"""Metrics per task over its own sample space, exact-once and summed over ranks.

T tasks, N bins. A binary task keeps a histogram of its predicted logits for each label, from which AUC follows, and the
sums behind log loss, normalized entropy and calibration; a regression keeps squared and absolute errors. It is all
sums, so ranks add up, and padding rows, which weigh 0, count nowhere.

torchrec.metrics computes the same numbers (tests compare them), but over a window and with an AUC state that it does
not save; in evaluation every row must count exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mtlrec.models.train_module import StepOutput

BINS = 1 << 17
LOGIT_RANGE = 16.0
"""Logits beyond it share the outermost bins (p < 1.2e-7). A bin is 0.00024 wide: within one, AUC counts a tie."""

Metrics = dict[str, dict[str, float]]


class TaskMetrics:
    """Accumulates `StepOutput`s; `compute` gives {task: {metric: value}}.

    Binary: auc, ne (log loss over that of always predicting the mean), log_loss, calibration (predicted over observed
    positives), rows, positives; with a parent also entire_auc, of p(task) over all impressions. Regression: mse, mae,
    rows. A figure that the rows cannot give (no rows, one class) is NaN.
    """

    def __init__(
        self, tasks: Sequence[str], is_binary: Sequence[bool], has_parent: Sequence[bool], device: torch.device
    ) -> None:
        self.tasks, self.is_binary, self.has_parent = list(tasks), list(is_binary), list(has_parent)
        count = len(self.tasks)
        wanted = [(task, False) for task in range(count) if is_binary[task]]
        wanted += [(task, True) for task in range(count) if has_parent[task]]
        self.histograms = {
            key: torch.zeros(2, BINS, dtype=torch.float64, device=device) for key in wanted
        }  # by (task, over all impressions)
        self.sums = torch.zeros(count, 4, dtype=torch.float64, device=device)
        self.changed = torch.zeros(count, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, step: StepOutput) -> None:
        outputs, populations = step.outputs, step.report.populations
        space = populations.space * step.weights[:, None]
        entire = populations.entire_space * step.weights[:, None]
        targets = populations.targets.where(entire + space > 0, 0.0)  # outside, a label may be anything
        self.changed += populations.changed
        for task, is_binary in enumerate(self.is_binary):
            target, weight = targets[:, task], space[:, task].double()
            if is_binary:
                log_p, log_not_p = outputs.log_p[:, task], outputs.log_not_p[:, task]
                self._count((task, False), log_p - log_not_p, target, weight)
                loss = -(target * log_p + (1 - target) * log_not_p)
                self._sum(task, weight, weight * target, weight * loss, weight * log_p.exp())
                if self.has_parent[task]:
                    log_entire = outputs.log_entire_p[:, task].clamp(max=-1e-7)
                    logit = log_entire - torch.log(-torch.expm1(log_entire))
                    self._count((task, True), logit, target, entire[:, task].double())
            else:
                error = (outputs.value[:, task] - target).double()
                self._sum(task, weight, weight * target, weight * error.square(), weight * error.abs())

    def _count(self, key: tuple[int, bool], logit: Tensor, target: Tensor, weight: Tensor) -> None:
        bins = ((logit + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE))).clamp(0, BINS - 1).long()
        self.histograms[key].view(-1).index_add_(0, bins + BINS * target.long(), weight)

    def _sum(self, task: int, *columns: Tensor) -> None:
        self.sums[task] += torch.stack([column.double().sum() for column in columns])

    def compute(self) -> Metrics:
        """Collective: every rank calls it and gets the same. What was accumulated stays as it is."""
        histograms = {key: _sum_over_ranks(histogram) for key, histogram in self.histograms.items()}
        sums, changed = _sum_over_ranks(self.sums), _sum_over_ranks(self.changed)
        metrics: Metrics = {}
        for task, name in enumerate(self.tasks):
            if not self.is_binary[task]:
                metrics[name] = _regression(sums[task])
                continue
            metrics[name] = {"auc": auc(histograms[task, False]), **_binary(sums[task])}
            if self.has_parent[task]:
                metrics[name]["entire_auc"] = auc(histograms[task, True])
                metrics[name]["inconsistent_labels"] = int(changed[task].item())
        return metrics


def _binary(sums: Tensor) -> dict[str, float]:
    rows, positives, loss, predicted = sums.tolist()
    return {
        "ne": _ratio(_ratio(loss, rows), _entropy(_ratio(positives, rows))),
        "log_loss": _ratio(loss, rows),
        "calibration": _ratio(predicted, positives),
        "rows": int(rows),
        "positives": int(positives),
    }


def _regression(sums: Tensor) -> dict[str, float]:
    rows, _, squared, absolute = sums.tolist()
    return {"mse": _ratio(squared, rows), "mae": _ratio(absolute, rows), "rows": int(rows)}


def _sum_over_ranks(accumulated: Tensor) -> Tensor:
    total = accumulated.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def auc(histogram: Tensor) -> float:
    """histogram [2, N]: weights of negatives and positives by rising score. A bin's pairs count one half."""
    negatives, positives = histogram[0], histogram[1]
    below = negatives.cumsum(0) - negatives
    pairs = (negatives.sum() * positives.sum()).item()
    return _ratio((positives * (below + negatives / 2)).sum().item(), pairs)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _entropy(p: float) -> float:
    if not 0 < p < 1:
        return math.nan
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))
