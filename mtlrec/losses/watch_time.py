"""Weighted logistic regression of a time (Covington et al., RecSys 2016), over every row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses.task_loss import LabelRule, TaskLoss


@dataclass(frozen=True)
class WatchTime(TaskLoss):
    """t softplus(-z) + softplus(z): its minimum is where exp(z) = E[t], in the unit of t; t >= 0."""

    label_rule: ClassVar[LabelRule] = "non_negative"
    is_positive: ClassVar[bool] = True

    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        return targets * softplus(-outputs.value) + softplus(outputs.value)

    def predictions(self, outputs: HeadOutput) -> Tensor:
        return outputs.value.exp()

    def initial_value(self, mean: float) -> float:
        """The logarithm."""
        if not mean > 0:
            raise ValueError(f"the mean of a time is above 0, got {mean}")
        return math.log(mean)
