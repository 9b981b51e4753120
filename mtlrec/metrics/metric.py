"""What every metric is: sums over the rows of a task, and the value that follows from them.

Several metrics may share their sums: AUC, log loss and the calibration error all follow from one histogram.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor


class TaskRows(NamedTuple):
    """Rows of one task, [B] each.

    target: the label
    weight: of the row; 0 outside the task's space, where the other tensors may hold anything
    prediction: in the label's unit
    log_p, log_not_p: of a probability; meaningless for other tasks
    group_ids: whose each row is, where the job names a column for that
    """

    target: Tensor
    weight: Tensor
    prediction: Tensor
    log_p: Tensor
    log_not_p: Tensor
    group_ids: Tensor | None = None


class Sums(ABC):
    """What is kept of a task's rows. Ranks keep their own and add up at the end.

    Args:
        device: where the rows are
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def update(self, rows: TaskRows) -> None:
        """Add a batch's rows."""

    @abstractmethod
    def over_ranks(self) -> Self:
        """Collective. The sums over all ranks; its own stay as they are."""


class Metric:
    """A figure of a task. A job names a class of its own in `metrics.extra`.

    Attributes:
        name: in results, and in `train.keep_best`
        description: for help and documentation
        sums: what it follows from
        of: probabilities, numbers (regressions, watch times), or any task
        direction: whether the highest or the lowest is best; None for a figure that says nothing of the kind
        needs_groups: only where `metrics.group_by` names a column
        is_also_entire: also reported of p(task) over all impressions, as entire_NAME, where the task has a parent
        is_count: shown without decimals
    """

    name: ClassVar[str]
    description: ClassVar[str]
    sums: ClassVar[type[Sums]]
    of: ClassVar[Literal["probabilities", "numbers", "any"]]
    direction: ClassVar[Literal["highest", "lowest"] | None] = None
    needs_groups: ClassVar[bool] = False
    is_also_entire: ClassVar[bool] = False
    is_count: ClassVar[bool] = False

    @staticmethod
    def value(sums: Any) -> float:
        """NaN where the rows cannot give it: there are none, or all of one class."""
        raise NotImplementedError


def sum_over_ranks(accumulated: Tensor) -> Tensor:
    """Collective."""
    total = accumulated.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
