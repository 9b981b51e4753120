"""What a kind of task is trained on: the loss of a row, the prediction, and where a tower starts.

B batch, K columns, one for each of the tasks that share a loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from mtlrec.heads.funnel import HeadOutput

LabelRule = Literal["flag", "non_negative", "number"]
"""What a label may be, beside unknown: 0 or 1, a number that is not negative, any number."""


class TaskLoss(ABC):
    """Base of all task losses. A subclass is a frozen dataclass: tasks whose losses are equal are computed as one.

    Its fields are keys of a task, with their types, defaults and the descriptions under "Args".

    Attributes:
        label_rule: what the label may be
        is_probability: whether the task predicts p(label = 1), so that AUC and calibration make sense
        is_positive: whether predictions are above 0, so that a ranking score may multiply them
    """

    label_rule: ClassVar[LabelRule]
    is_probability: ClassVar[bool] = False
    is_positive: ClassVar[bool] = False

    @abstractmethod
    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        """The loss of every row, inside the task's space or not: outputs and targets of [B, K] -> [B, K]."""

    @abstractmethod
    def predictions(self, outputs: HeadOutput) -> Tensor:
        """[B, K] -> [B, K], in the label's unit."""

    @abstractmethod
    def initial_value(self, mean: float) -> float:
        """The tower's output whose prediction is `mean`: with this bias training starts at the labels' mean.

        Raises ValueError where no output predicts it.
        """
