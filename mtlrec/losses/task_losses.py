"""The losses of all tasks together: those that are equal are computed at once, on their columns.

B batch, T tasks, K tasks that share a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses.task_loss import TaskLoss


class TaskLosses:
    """The loss of every task, in the order of the tasks.

    Args:
        losses: one per task; equal ones are one group

    Attributes:
        is_probability: [T], of each task
    """

    def __init__(self, losses: Sequence[TaskLoss]) -> None:
        self.losses = list(losses)
        self.is_probability = [loss.is_probability for loss in losses]
        self._groups: dict[TaskLoss, list[int]] = {}
        for task, loss in enumerate(losses):
            self._groups.setdefault(loss, []).append(task)
        order = [task for tasks in self._groups.values() for task in tasks]
        self._places = None if order == sorted(order) else [order.index(task) for task in range(len(order))]

    def __len__(self) -> int:
        return len(self.losses)

    def __iter__(self) -> Iterator[TaskLoss]:
        return iter(self.losses)

    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        """outputs and targets of [B, T] -> the loss of every row [B, T], inside the task's space or not."""
        groups = zip(self._groups, self._outputs_of(outputs), self._columns_of(targets), strict=True)
        return self._joined([loss.row_losses(some, wanted) for loss, some, wanted in groups])

    def predictions(self, outputs: HeadOutput) -> Tensor:
        """[B, T], each in its label's unit; of a probability over all impressions."""
        groups = zip(self._groups, self._outputs_of(outputs), strict=True)
        return self._joined([loss.predictions(some) for loss, some in groups])

    def _outputs_of(self, outputs: HeadOutput) -> list[HeadOutput]:
        """By group, without what is imputed."""
        if len(self._groups) == 1:
            return [outputs]
        parts = (outputs.value, outputs.log_p, outputs.log_not_p, outputs.log_entire_p)
        return [HeadOutput(*columns) for columns in zip(*map(self._columns_of, parts), strict=True)]

    def _columns_of(self, values_BT: Tensor) -> list[Tensor]:
        """By group, [B, K]; views where the tasks of a group stand together."""
        if len(self._groups) == 1:
            return [values_BT]
        if self._places is None:
            return list(values_BT.split([len(tasks) for tasks in self._groups.values()], dim=1))
        columns = values_BT.unbind(1)
        return [torch.stack([columns[task] for task in tasks], dim=1) for tasks in self._groups.values()]

    def _joined(self, parts_BK: Sequence[Tensor]) -> Tensor:
        """[B, T], in the order of the tasks."""
        if len(parts_BK) == 1:
            return parts_BK[0]
        if self._places is None:
            return torch.cat(list(parts_BK), dim=1)
        columns = [column for part in parts_BK for column in part.unbind(1)]
        return torch.stack([columns[place] for place in self._places], dim=1)
