"""Adaptive Information Transfer Multi-task (Xi et al., KDD 2021), for any forest of tasks."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.head import Head, RowLosses
from mtlrec.heads.towers import TaskLogits, TowerOptions, by_task, hidden_axes, hidden_bank
from mtlrec.layers.blocks.arguments import NonEmptyWidths, NonNegative
from mtlrec.layers.blocks.axes import Axes, prefixed, units


class Transfer(nn.Module):
    """The AIT module: a task's own features and what its parent hands on, by attention over the two.

    Args:
        width: W

    Shapes: own `[B, W]`, handed on `[B, W]` -> `[B, W]`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hand_on = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.value, self.key, self.query = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, own: Tensor, of_parent: Tensor) -> Tensor:
        both = torch.stack([self.hand_on(of_parent), own], dim=1)
        scores = (self.key(both) * self.query(both)).sum(dim=2, keepdim=True) / math.sqrt(own.shape[1])
        return (scores.softmax(dim=1) * self.value(both)).sum(dim=1)


class AITM(Head):
    """Tower k gives features q_k; a child's are z_k = attention over (q_k, g_k(z_parent)), a root's z_k = q_k.

    Every task predicts p(task) over all impressions from z_k and is trained on the root's whole space. Nothing forces
    p(child) <= p(parent); the paper's behavioral expectation calibrator asks for it in the loss.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower, the last that of z; at least one
        calibrator: weight of max(0, p(child) - p(parent)) in the child's loss
        sampling_rates: the share of each task's negatives that training sees; of tasks with neither parent nor child
        options: see `TowerOptions`

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle, or `tower_hidden` is empty.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: NonEmptyWidths = (64,),
        calibrator: NonNegative = 0.6,
        sampling_rates: Sequence[float] | None = None,
        **options: Unpack[TowerOptions],
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        if not tower_hidden:
            raise ValueError("tower_hidden must have at least one width: a task's features are what is handed on")
        self.calibrator, width = calibrator, tower_hidden[-1]
        self.towers = hidden_bank(len(tasks), input_dim, tower_hidden, **options)
        self.transfers = by_task(tasks, lambda slot: nn.Identity() if parents[slot] is None else Transfer(width))
        self.logits = TaskLogits(len(tasks), width)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        features = list(self.towers(fused).unbind(1))
        transfers = list(self.transfers.values())
        for slot in self.order:
            parent = self.parents[slot]
            if parent is not None:
                features[slot] = transfers[slot](features[slot], features[parent])
        return self.over_impressions(self.logits(torch.stack(features, dim=1)))

    def add_terms(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, row_losses: RowLosses) -> Tensor:
        p = outputs.log_p.exp()
        excess = relu(self.of_children(p) - self.of_parents(p))
        return rows.index_add(1, self.child_slots, excess, alpha=self.calibrator)

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        """What a child is handed means nothing under another parent."""
        axes = prefixed("towers", hidden_axes(self.towers, tasks)) | prefixed("logits", self.logits.axes(tasks))
        for task, parent in zip(self.tasks, self.parents, strict=True):
            if parent is not None:
                handed_on = units([tasks[parent]], self.logits.weight.shape[2])
                axes[f"transfers.task_{task}.hand_on.0.weight"] = (None, handed_on)
        return axes

    def set_bias(self, values: Sequence[float]) -> None:
        self.logits.set_bias(values)
