"""Metrics of regressions and watch times, in the label's unit or its square."""

from __future__ import annotations

from typing import Self

import torch

from mtlrec.metrics.metric import Metric, Sums, TaskRows, ratio, sum_over_ranks


class ErrorSums(Sums):
    """Totals of weights, squared and absolute errors, labels and predictions."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.totals = torch.zeros(5, dtype=torch.float64, device=device)

    def update(self, rows: TaskRows) -> None:
        weight = rows.weight.double()
        predicted = rows.prediction.where(rows.weight > 0, 0.0)
        error = (predicted - rows.target).double()
        columns = [weight, weight * error.square(), weight * error.abs(), weight * rows.target, weight * predicted]
        self.totals += torch.stack([column.double().sum() for column in columns])

    def over_ranks(self) -> Self:
        total = type(self)(self.device)
        total.totals = sum_over_ranks(self.totals)
        return total

    def mean(self, index: int) -> float:
        return ratio(self.totals[index].item(), self.totals[0].item())


class ErrorMetric(Metric):
    sums = ErrorSums
    of = "numbers"


class MSE(ErrorMetric):
    name, description, direction = "mse", "mean squared error", "lowest"

    @staticmethod
    def value(sums: ErrorSums) -> float:
        return sums.mean(1)


class MAE(ErrorMetric):
    name, description, direction = "mae", "mean absolute error", "lowest"

    @staticmethod
    def value(sums: ErrorSums) -> float:
        return sums.mean(2)


class MeanLabel(ErrorMetric):
    name, description = "mean", "mean of the labels"

    @staticmethod
    def value(sums: ErrorSums) -> float:
        return sums.mean(3)


class MeanPrediction(ErrorMetric):
    name, description = "predicted_mean", "mean of the predictions"

    @staticmethod
    def value(sums: ErrorSums) -> float:
        return sums.mean(4)
