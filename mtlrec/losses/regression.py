"""Squared error or Huber's loss of a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import huber_loss

from mtlrec.heads.funnel import HeadOutput
from mtlrec.layers.blocks.arguments import Positive
from mtlrec.losses.task_loss import LabelRule, TaskLoss


@dataclass(frozen=True)
class Regression(TaskLoss):
    """(value - target)^2, or Huber's loss of their difference.

    Args:
        loss: mse, or huber, which is linear in large errors
        huber_delta: the error from which on Huber's loss is linear

    Raises:
        ValueError: for another loss, or a huber_delta without huber.
    """

    loss: Literal["mse", "huber"] = "mse"
    huber_delta: Positive = 1.0

    label_rule: ClassVar[LabelRule] = "number"

    def __post_init__(self) -> None:
        if self.loss not in ("mse", "huber"):
            raise ValueError(f"loss must be mse or huber, got {self.loss!r}")
        if self.loss == "mse" and self.huber_delta != 1.0:
            raise ValueError("huber_delta is for loss: huber")

    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        if self.loss == "huber":
            return huber_loss(outputs.value, targets, reduction="none", delta=self.huber_delta)
        return (outputs.value - targets).square()

    def predictions(self, outputs: HeadOutput) -> Tensor:
        return outputs.value

    def initial_value(self, mean: float) -> float:
        return mean
