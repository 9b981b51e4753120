"""What is kept of a binary task's predictions, all of it sums: a histogram of logits for each label, and totals.

N bins. Ranks add up exactly, and padding rows, which weigh 0, count nowhere. AUC and the calibration error follow from
the histogram: within a bin of 0.00024 AUC counts a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

BINS = 1 << 17
LOGIT_RANGE = 16.0
"""Logits beyond it share the outermost bins (p < 1.2e-7)."""
CALIBRATION_BUCKETS = 20
"""Of equal weight, in the order of the prediction; the calibration error is a mean over them."""


class BinaryTally:
    """Accumulates (log probabilities, target, weight) of rows; `compute` gives the metrics."""

    def __init__(self, device: torch.device) -> None:
        self.histogram = torch.zeros(2, BINS, dtype=torch.float64, device=device)
        self.totals = torch.zeros(6, dtype=torch.float64, device=device)

    def update(self, log_p: Tensor, log_not_p: Tensor, target: Tensor, weight: Tensor) -> None:
        """[B] each; weight 0 outside the population."""
        weight = weight.double()
        bins = ((log_p - log_not_p + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE))).clamp(0, BINS - 1).long()
        self.histogram.view(-1).index_add_(0, bins + BINS * target.long(), weight)
        loss = -(target * log_p + (1 - target) * log_not_p)
        inside = (weight > 0).double()
        columns = [inside, inside * target, weight, weight * target, weight * loss, weight * log_p.exp()]
        self.totals += torch.stack([column.double().sum() for column in columns])

    def over_ranks(self) -> BinaryTally:
        """Collective."""
        total = BinaryTally(self.totals.device)
        total.histogram, total.totals = sum_over_ranks(self.histogram), sum_over_ranks(self.totals)
        return total

    def histogram_of_rows(self) -> Tensor:
        """The histogram with the rows' weights scaled to a mean of 1: what it adds up to is a number of rows."""
        rows, weight = self.totals[0], self.totals[2]
        return self.histogram * (rows / weight.clamp(min=torch.finfo(weight.dtype).tiny))

    def compute(self) -> dict[str, float]:
        """auc, ne (log loss over that of always predicting the mean), log_loss, calibration (predicted over observed
        positives), ece (see `calibration_error`), rows, positives."""
        rows, positives, weight, observed, loss, predicted = self.totals.tolist()
        return {
            "auc": auc(self.histogram),
            "ne": ratio(ratio(loss, weight), _entropy(ratio(observed, weight))),
            "log_loss": ratio(loss, weight),
            "calibration": ratio(predicted, observed),
            "ece": calibration_error(self.histogram),
            "rows": int(rows),
            "positives": int(positives),
        }


def logit_of(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log(1 - p)) where only log p is known; p is at most 1 - 1e-7."""
    log_p = log_p.clamp(max=-1e-7)
    return log_p, torch.log(-torch.expm1(log_p))


def sum_over_ranks(accumulated: Tensor) -> Tensor:
    total = accumulated.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def auc(histogram: Tensor) -> float:
    """histogram [2, N]: weights of negatives and positives by rising score. A bin's pairs count one half."""
    negatives, positives = histogram[0], histogram[1]
    below = negatives.cumsum(0) - negatives
    pairs = (negatives.sum() * positives.sum()).item()
    return ratio((positives * (below + negatives / 2)).sum().item(), pairs)


def bin_logits(device: torch.device) -> Tensor:
    """[N]: the logit in the middle of every bin."""
    return (torch.arange(BINS, dtype=torch.float64, device=device) + 0.5) * (2 * LOGIT_RANGE / BINS) - LOGIT_RANGE


class CalibrationCurve(NamedTuple):
    """By bucket of equal weight, in the order of the prediction: [CALIBRATION_BUCKETS] each, or fewer."""

    weight: Tensor
    predicted: Tensor
    observed: Tensor


def calibration_curve(histogram: Tensor, calibrated: Callable[[Tensor], Tensor] = torch.sigmoid) -> CalibrationCurve:
    """Mean predictions and shares of positives; `calibrated` maps logits to probabilities."""
    histogram = histogram.double()
    weight = histogram.sum(0)
    predicted = calibrated(bin_logits(histogram.device)) * weight
    middle = (weight.cumsum(0) - weight / 2) / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    bucket = (middle * CALIBRATION_BUCKETS).long().clamp(max=CALIBRATION_BUCKETS - 1)
    sums = torch.zeros(3, CALIBRATION_BUCKETS, dtype=weight.dtype, device=weight.device)
    sums.index_add_(1, bucket, torch.stack([weight, predicted, histogram[1]]))
    weight, predicted, observed = sums[:, sums[0] > 0]
    return CalibrationCurve(weight, predicted / weight, observed / weight)


def calibration_error(histogram: Tensor, calibrated: Callable[[Tensor], Tensor] = torch.sigmoid) -> float:
    """Mean over buckets of equal weight of |mean prediction - share of positives| (ECE, Naeini et al., AAAI 2015)."""
    weight, predicted, observed = calibration_curve(histogram, calibrated)
    return ratio(((predicted - observed).abs() * weight).sum().item(), weight.sum().item())


def ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _entropy(p: float) -> float:
    if not 0 < p < 1:
        return math.nan
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))
