"""What each task is trained on, and how the losses add up. Torch only."""

from mtlrec.losses.balancing import (
    Balancing,
    DynamicWeightAverage,
    GradientBalancing,
    Uncertainty,
    decayed_weights,
)
from mtlrec.losses.binary import Binary
from mtlrec.losses.multitask import LossReport, MultiTaskLoss
from mtlrec.losses.regression import Regression
from mtlrec.losses.task_loss import TaskLoss
from mtlrec.losses.task_losses import TaskLosses
from mtlrec.losses.watch_time import WatchTime

LOSSES: dict[str, type[TaskLoss]] = {"binary": Binary, "regression": Regression, "watch_time": WatchTime}
"""By kind of task. A task may say what its loss's constructor takes."""

__all__ = [
    "LOSSES",
    "Balancing",
    "Binary",
    "DynamicWeightAverage",
    "GradientBalancing",
    "LossReport",
    "MultiTaskLoss",
    "Regression",
    "TaskLoss",
    "TaskLosses",
    "Uncertainty",
    "WatchTime",
    "decayed_weights",
]
