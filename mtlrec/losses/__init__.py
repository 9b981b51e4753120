"""What each task is trained on, and how the losses add up. Torch only."""

from mtlrec.losses.balancing import (
    Balancing,
    DynamicWeightAverage,
    GradientBalancing,
    Static,
    Uncertainty,
    decayed_weights,
)
from mtlrec.losses.funnel_terms import Counterfactual, ExpectationCalibrator
from mtlrec.losses.multitask import LossReport, MultiTaskLoss
from mtlrec.losses.task_losses import TaskLoss

__all__ = [
    "Balancing",
    "Counterfactual",
    "DynamicWeightAverage",
    "ExpectationCalibrator",
    "GradientBalancing",
    "LossReport",
    "MultiTaskLoss",
    "Static",
    "TaskLoss",
    "Uncertainty",
    "decayed_weights",
]
