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
from mtlrec.losses.conditions import Condition, evaluate


class Populations(NamedTuple):
    """What the rows are to each task.

    targets: [B, T] float32, made consistent with the funnel
    space: [B, T] 0/1, where the task's loss is taken
    entire_space: [B, T] 0/1, where p(task) over all impressions is compared with the target
    weights: [B, T] of the rows, 0 for padding
    changed: [T] rows whose label broke the funnel
    missing: [T] rows of the parent's positives whose own label is unknown, and which are therefore in neither space
    """

    targets: Tensor
    space: Tensor
    entire_space: Tensor
    weights: Tensor
    changed: Tensor
    missing: Tensor


@dataclass(frozen=True)
class SampleSpaces:
    """Label columns to targets and 0/1 spaces per task.

    A child's target is child AND parent: a funnel's labels are made consistent first, and the rows that this changed
    are counted. Where the parent is known to be 0, the child is known to be 0, even if its own label is missing.

    Args:
        labels: index of each task's label column
        parents: index of the task each one follows, or None
        conditions: of each task, which rows belong to it (see `conditions.py`; a source is `("task", index)`, whose
            consistent target counts, or `("column", index)`), or None. A child's rows are among its parent's.
        conditional: whether a child is trained where its parent is 1 only (independent towers), or on the root's space
        row_weights: index of each task's column of row weights, or None; all None by default. A row without a weight
            is not in the space.
    """

    labels: Sequence[int]
    parents: Sequence[int | None]
    conditions: Sequence[Condition | None]
    conditional: bool
    row_weights: Sequence[int | None] | None = None

    def __call__(self, columns: Tensor, known: Tensor, weights: Tensor) -> Populations:
        """columns [B, C], 0 where unknown; known [B, C], 0/1; weights [B], 0 for padding rows.

        `space` and `entire_space` are the same for a root, and for all tasks under `conditional=False`.
        """
        targets, is_known = self._consistent(columns, known)
        present = (weights > 0).to(columns.dtype)
        row_weights = {task: self._weights_of(task, columns, known, weights) for task in targets}
        inherited: dict[int, Tensor] = {}
        entire: dict[int, Tensor] = {}
        space: dict[int, Tensor] = {}
        changed: dict[int, Tensor] = {}
        missing: dict[int, Tensor] = {}
        for task in topological_order(self.parents):
            parent = self.parents[task]
            inherited[task] = present if parent is None else inherited[parent]
            inherited[task] = inherited[task] * self._condition(task, columns, known, targets, is_known)
            missing[task] = torch.zeros_like(present).sum()
            if parent is not None:
                missing[task] = (inherited[task] * targets[parent] * (1 - is_known[task])).sum()
            inherited[task] = inherited[task] * is_known[task]
            has_weight = (row_weights[task] > 0).to(columns.dtype)
            entire[task] = inherited[task] * has_weight
            if parent is None:
                space[task], changed[task] = entire[task], torch.zeros_like(present).sum()
            else:
                label, own_known = columns[:, self.labels[task]], known[:, self.labels[task]]
                space[task] = entire[task] * own_known * targets[parent] if self.conditional else entire[task]
                changed[task] = (entire[task] * own_known * label * (1 - targets[parent])).sum()
        tasks = range(len(self.labels))
        return Populations(
            targets=torch.stack([targets[task] for task in tasks], dim=1),
            space=torch.stack([space[task] for task in tasks], dim=1),
            entire_space=torch.stack([entire[task] for task in tasks], dim=1),
            weights=torch.stack([row_weights[task] for task in tasks], dim=1),
            changed=torch.stack([changed[task] for task in tasks]),
            missing=torch.stack([missing[task] for task in tasks]),
        )

    def _consistent(self, columns: Tensor, known: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Targets, and whether known, [B] by task: a child is child AND parent, known to be 0 where either is."""
        targets: dict[int, Tensor] = {}
        is_known: dict[int, Tensor] = {}
        for task in topological_order(self.parents):
            parent = self.parents[task]
            label, own = columns[:, self.labels[task]], known[:, self.labels[task]]
            if parent is None:
                targets[task], is_known[task] = label, own
            else:
                above, above_known = targets[parent], is_known[parent]
                either_is_0 = torch.maximum(own * (1 - label), above_known * (1 - above))
                targets[task], is_known[task] = label * above, torch.maximum(own * above_known, either_is_0)
        return targets, is_known

    def _weights_of(self, task: int, columns: Tensor, known: Tensor, weights: Tensor) -> Tensor:
        column = None if self.row_weights is None else self.row_weights[task]
        return weights if column is None else weights * columns[:, column] * known[:, column]

    def _condition(
        self, task: int, columns: Tensor, known: Tensor, targets: dict[int, Tensor], is_known: dict[int, Tensor]
    ) -> Tensor:
        """[B] 0/1: 1 where the task's condition surely holds."""
        condition = self.conditions[task]
        if condition is None:
            return torch.ones_like(columns[:, 0])

        def read(source: tuple[str, int]) -> tuple[Tensor, Tensor]:
            kind, index = source
            return (targets[index], is_known[index]) if kind == "task" else (columns[:, index], known[:, index])

        return evaluate(condition, read)[0].to(columns.dtype)
