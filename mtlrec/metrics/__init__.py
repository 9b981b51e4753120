"""Metrics of a task: sums over rows, and the values that follow from them. Torch and NumPy only.

`METRICS` is the one place that says what there is: evaluation, `train.keep_best`, `mtlrec compare`, the parity of an
artifact and the documentation take what they know from it.
"""

from __future__ import annotations

from collections.abc import Iterable

from mtlrec.metrics.binary import (
    AUC,
    CalibrationError,
    CalibrationRatio,
    LogLoss,
    NormalizedEntropy,
    Positives,
)
from mtlrec.metrics.errors import MAE, MSE, MeanLabel, MeanPrediction
from mtlrec.metrics.grouped_auc import GroupedAUC
from mtlrec.metrics.metric import Metric
from mtlrec.metrics.rows import NumRows
from mtlrec.metrics.xauc import XAUC, GroupedXAUC

METRICS: dict[str, type[Metric]] = {
    "auc": AUC,
    "gauc": GroupedAUC,
    "ne": NormalizedEntropy,
    "log_loss": LogLoss,
    "calibration": CalibrationRatio,
    "ece": CalibrationError,
    "mse": MSE,
    "mae": MAE,
    "xauc": XAUC,
    "gxauc": GroupedXAUC,
    "mean": MeanLabel,
    "predicted_mean": MeanPrediction,
    "rows": NumRows,
    "positives": Positives,
}
ENTIRE = "entire_"
"""Begins the name of a metric of p(task) over all impressions."""
Metrics = dict[str, dict[str, float]]
"""By task and metric."""


def metrics_of(is_probability: bool, has_groups: bool, extra: Iterable[type[Metric]] = ()) -> list[type[Metric]]:
    """The metrics of a task, in the order they are reported in, the job's own last."""
    of = ("any", "probabilities" if is_probability else "numbers")
    return [
        metric for metric in (*METRICS.values(), *extra) if metric.of in of and (has_groups or not metric.needs_groups)
    ]


def directions(
    is_probability: bool, has_groups: bool, has_parent: bool, extra: Iterable[type[Metric]] = ()
) -> dict[str, str]:
    """By name, highest or lowest, for every metric of a task by which a model may be judged."""
    judging = [metric for metric in metrics_of(is_probability, has_groups, extra) if metric.direction is not None]
    own = {metric.name: str(metric.direction) for metric in judging}
    entire = {ENTIRE + metric.name: str(metric.direction) for metric in judging if metric.is_also_entire}
    return own | (entire if has_parent else {})


JUDGES = directions(True, True, True) | directions(False, True, False)
"""Every metric that judges a model, by name: highest or lowest is best."""

__all__ = ["ENTIRE", "JUDGES", "METRICS", "Metric", "Metrics", "directions", "metrics_of"]
