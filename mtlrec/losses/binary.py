"""Cross entropy of a yes or no, from log probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mtlrec.heads.funnel import HeadOutput
from mtlrec.layers.blocks.arguments import BelowOne, Positive
from mtlrec.losses.task_loss import LabelRule, TaskLoss


@dataclass(frozen=True)
class Binary(TaskLoss):
    """-(w y log p + (1 - y) log(1 - p)), of the p that the head takes the task's loss on.

    Args:
        pos_weight: w, of the positives' loss; multiplies the odds that are learned
        label_smoothing: e; a target y becomes y (1 - e) + e / 2
    """

    pos_weight: Positive = 1.0
    label_smoothing: BelowOne = 0.0

    label_rule: ClassVar[LabelRule] = "flag"
    is_probability: ClassVar[bool] = True
    is_positive: ClassVar[bool] = True

    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        of_positive = targets * outputs.log_p
        if self.pos_weight != 1:
            of_positive = self.pos_weight * of_positive
        return -(of_positive + (1 - targets) * outputs.log_not_p)

    def predictions(self, outputs: HeadOutput) -> Tensor:
        """p(task) over all impressions."""
        return outputs.log_entire_p.exp()

    def initial_value(self, mean: float) -> float:
        """The log-odds."""
        if not 0 < mean < 1:
            raise ValueError(f"the mean of a yes or no lies between 0 and 1, got {mean}")
        return math.log(mean) - math.log1p(-mean)
