"""The population of each task: which rows its loss, and its metrics, may see.

B batch, T tasks, C label columns. One implementation serves the loss and the metrics: what the loss masks, the metric
masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mtlrec.heads.funnel import topological_order


class Populations(NamedTuple):
    """targets, space, entire_space: [B, T] float32; changed: [T] rows whose label broke the funnel."""

    targets: Tensor
    space: Tensor
    entire_space: Tensor
    changed: Tensor


@dataclass(frozen=True)
class SampleSpaces:
    """Label columns to targets and 0/1 spaces per task.

    A child's target is child AND parent: a funnel's labels are made consistent first, and the rows that this changed
    are counted. Where the parent is known to be 0, the child is known to be 0, even if its own label is missing.

    Args:
        labels: index of each task's label column
        parents: index of the task each one follows, or None
        conditions: index of the column that must be 1 for the row to belong to the task, or None
        conditional: whether a child is trained where its parent is 1 only (independent towers), or on the root's space
    """

    labels: Sequence[int]
    parents: Sequence[int | None]
    conditions: Sequence[int | None]
    conditional: bool

    def __call__(self, columns: Tensor, known: Tensor, weights: Tensor) -> Populations:
        """columns, known: [B, C], 0/1 in `known`; weights: [B], 0 for padding rows.

        `space` is where the loss is taken, `entire_space` where p(task) over all impressions is compared with the
        target; for a root and under `conditional=False` they are the same.
        """
        targets: dict[int, Tensor] = {}
        entire: dict[int, Tensor] = {}
        space: dict[int, Tensor] = {}
        changed: dict[int, Tensor] = {}
        present = (weights > 0).to(columns.dtype)
        for task in topological_order(self.parents):
            column, parent = self.labels[task], self.parents[task]
            label, is_known = columns[:, column], known[:, column]
            if parent is None:
                targets[task], changed[task] = label, torch.zeros_like(present).sum()
                entire[task] = space[task] = present * is_known * self._condition(task, columns, known)
                continue
            above = targets[parent]
            targets[task] = label * above
            inside = entire[parent] * self._condition(task, columns, known)
            entire[task] = inside * torch.maximum(is_known, 1 - above)
            changed[task] = (entire[parent] * is_known * label * (1 - above)).sum()
            space[task] = inside * is_known * above if self.conditional else entire[task]
        tasks = range(len(self.labels))
        return Populations(
            targets=torch.stack([targets[task] for task in tasks], dim=1),
            space=torch.stack([space[task] for task in tasks], dim=1),
            entire_space=torch.stack([entire[task] for task in tasks], dim=1),
            changed=torch.stack([changed[task] for task in tasks]),
        )

    def _condition(self, task: int, columns: Tensor, known: Tensor) -> Tensor:
        condition = self.conditions[task]
        if condition is None:
            return torch.ones_like(columns[:, 0])
        return known[:, condition] * (columns[:, condition] == 1).to(columns.dtype)
