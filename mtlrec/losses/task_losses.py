"""The loss of one row, by kind of task. [B] in, [B] out."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from mtlrec.heads.funnel import HeadOutput


class TaskLoss(NamedTuple):
    """What a task's loss is.

    kind: binary (cross entropy), squared, huber, or watch_time
    pos_weight: of a binary task's positives
    label_smoothing: e; a binary target y becomes y (1 - e) + e / 2
    huber_delta: the error from which on Huber's loss is linear
    """

    kind: Literal["binary", "squared", "huber", "watch_time"] = "binary"
    pos_weight: float = 1.0
    label_smoothing: float = 0.0
    huber_delta: float = 1.0

    def of_rows(self, outputs: HeadOutput, targets: Tensor, task: int) -> Tensor:
        """[B]: the loss of every row, inside the task's space or not."""
        target, value = targets[:, task], outputs.value[:, task]
        match self.kind:
            case "binary":
                return self.cross_entropy(target, outputs.log_p[:, task], outputs.log_not_p[:, task])
            case "squared":
                return (value - target).square()
            case "huber":
                return F.huber_loss(value, target, reduction="none", delta=self.huber_delta)
            case "watch_time":
                return watch_time_loss(target, value)

    def cross_entropy(self, target: Tensor, log_p: Tensor, log_not_p: Tensor) -> Tensor:
        """-(w y log p + (1 - y) log(1 - p)), from log probabilities, so that none is rounded to 0 or 1."""
        target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return -(self.pos_weight * target * log_p + (1 - target) * log_not_p)


def watch_time_loss(time: Tensor, logit: Tensor) -> Tensor:
    """t softplus(-z) + softplus(z): weighted logistic regression (Covington et al., RecSys 2016), over every row.

    Its minimum is where exp(z) = E[t], in the unit of t; t >= 0.
    """
    return time * F.softplus(-logit) + F.softplus(logit)
