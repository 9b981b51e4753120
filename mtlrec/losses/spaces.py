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
        conditions: ("task", index) or ("column", index) of what must be 1 for the row to belong to the task, or None;
            of a task it is the consistent target that counts
        conditional: whether a child is trained where its parent is 1 only (independent towers), or on the root's space
    """

    labels: Sequence[int]
    parents: Sequence[int | None]
    conditions: Sequence[tuple[str, int] | None]
    conditional: bool

    def __call__(self, columns: Tensor, known: Tensor, weights: Tensor) -> Populations:
        """columns [B, C], 0 where unknown; known [B, C], 0/1; weights [B], 0 for padding rows.

        `space` is where the loss is taken, `entire_space` where p(task) over all impressions is compared with the
        target; for a root and under `conditional=False` they are the same.
        """
        targets, is_known = self._consistent(columns, known)
        present = (weights > 0).to(columns.dtype)
        entire: dict[int, Tensor] = {}
        space: dict[int, Tensor] = {}
        changed: dict[int, Tensor] = {}
        for task in topological_order(self.parents):
            parent = self.parents[task]
            inside = present if parent is None else entire[parent]
            inside = inside * self._condition(task, columns, targets)
            entire[task] = inside * is_known[task]
            if parent is None:
                space[task], changed[task] = entire[task], torch.zeros_like(present).sum()
            else:
                label, own_known = columns[:, self.labels[task]], known[:, self.labels[task]]
                space[task] = inside * own_known * targets[parent] if self.conditional else entire[task]
                changed[task] = (inside * own_known * label * (1 - targets[parent])).sum()
        tasks = range(len(self.labels))
        return Populations(
            targets=torch.stack([targets[task] for task in tasks], dim=1),
            space=torch.stack([space[task] for task in tasks], dim=1),
            entire_space=torch.stack([entire[task] for task in tasks], dim=1),
            changed=torch.stack([changed[task] for task in tasks]),
        )

    def _consistent(self, columns: Tensor, known: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Targets, and whether known, [B] by task: a child is child AND parent, and known where the parent is 0."""
        targets: dict[int, Tensor] = {}
        is_known: dict[int, Tensor] = {}
        for task in topological_order(self.parents):
            parent = self.parents[task]
            targets[task], is_known[task] = columns[:, self.labels[task]], known[:, self.labels[task]]
            if parent is not None:
                is_known[task] = torch.maximum(is_known[task], 1 - targets[parent])
                targets[task] = targets[task] * targets[parent]
        return targets, is_known

    def _condition(self, task: int, columns: Tensor, targets: dict[int, Tensor]) -> Tensor:
        """[B] 0/1. What is unknown is 0 in `columns`, so it counts as no."""
        condition = self.conditions[task]
        if condition is None:
            return torch.ones_like(columns[:, 0])
        kind, index = condition
        return targets[index] if kind == "task" else (columns[:, index] == 1).to(columns.dtype)
