"""What is kept of a binary task's predictions, all of it sums: a histogram of logits for each label, and totals.

N bins. Ranks add up exactly, and padding rows, which weigh 0, count nowhere. AUC and the calibration error follow from
the histogram: within a bin of 0.00024 AUC counts a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mtlrec.metrics.metric import Metric, Sums, TaskRows, ratio, sum_over_ranks

BINS = 1 << 17
LOGIT_RANGE = 16.0
"""Logits beyond it share the outermost bins (p < 1.2e-7)."""
CALIBRATION_BUCKETS = 20
"""Of equal weight, in the order of the prediction; the calibration error is a mean over them."""


class BinarySums(Sums):
    """A histogram of logits for each label, and totals."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.histogram = torch.zeros(2, BINS, dtype=torch.float64, device=device)
        self.totals = torch.zeros(6, dtype=torch.float64, device=device)

    def update(self, rows: TaskRows) -> None:
        target, weight = rows.target, rows.weight.double()
        logits = rows.log_p - rows.log_not_p
        bins = ((logits + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE))).clamp(0, BINS - 1).long()
        self.histogram.view(-1).index_add_(0, bins + BINS * target.long(), weight)
        loss = -(target * rows.log_p + (1 - target) * rows.log_not_p)
        inside = (weight > 0).double()
        columns = [inside, inside * target, weight, weight * target, weight * loss, weight * rows.log_p.exp()]
        self.totals += torch.stack([column.double().sum() for column in columns])

    def over_ranks(self) -> Self:
        total = type(self)(self.device)
        total.histogram, total.totals = sum_over_ranks(self.histogram), sum_over_ranks(self.totals)
        return total

    def histogram_of_rows(self) -> Tensor:
        """The histogram with the rows' weights scaled to a mean of 1: what it adds up to is a number of rows."""
        rows, weight = self.totals[0], self.totals[2]
        return self.histogram * (rows / weight.clamp(min=torch.finfo(weight.dtype).tiny))


class BinaryMetric(Metric):
    sums = BinarySums
    of = "probabilities"


class AUC(BinaryMetric):
    name, description = "auc", "area under the ROC curve"
    direction, is_also_entire = "highest", True

    @staticmethod
    def value(sums: BinarySums) -> float:
        return auc(sums.histogram)


class NormalizedEntropy(BinaryMetric):
    name, description = "ne", "log loss over that of always predicting the mean (He et al., ADKDD 2014)"
    direction, is_also_entire = "lowest", True

    @staticmethod
    def value(sums: BinarySums) -> float:
        _, _, weight, observed, loss, _ = sums.totals.tolist()
        return ratio(ratio(loss, weight), _entropy(ratio(observed, weight)))


class LogLoss(BinaryMetric):
    name, description, direction = "log_loss", "mean cross entropy", "lowest"

    @staticmethod
    def value(sums: BinarySums) -> float:
        return ratio(sums.totals[4].item(), sums.totals[2].item())


class CalibrationRatio(BinaryMetric):
    name, description, is_also_entire = "calibration", "predicted over observed positives; 1 is right", True

    @staticmethod
    def value(sums: BinarySums) -> float:
        return ratio(sums.totals[5].item(), sums.totals[3].item())


class CalibrationError(BinaryMetric):
    name, description = "ece", f"mean distance of prediction and rate over {CALIBRATION_BUCKETS} buckets"
    direction, is_also_entire = "lowest", True

    @staticmethod
    def value(sums: BinarySums) -> float:
        return calibration_error(sums.histogram)


class Positives(BinaryMetric):
    name, description, is_count = "positives", "rows whose label is 1", True

    @staticmethod
    def value(sums: BinarySums) -> float:
        return sums.totals[1].item()


def logit_of(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log(1 - p)) where only log p is known; p is at most 1 - 1e-7."""
    log_p = log_p.clamp(max=-1e-7)
    return log_p, torch.log(-torch.expm1(log_p))


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


def _entropy(p: float) -> float:
    if not 0 < p < 1:
        return math.nan
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))
