"""Deep Bayesian Multi-Target Learning (Wang et al., 2019, arXiv 1902.09154), for any forest of tasks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.head import Head
from mtlrec.heads.towers import TaskLogits, TowerOptions, by_task, hidden_axes, hidden_bank
from mtlrec.layers.blocks.arguments import NonEmptyWidths, Widths
from mtlrec.layers.blocks.axes import Axes, prefixed, units
from mtlrec.layers.blocks.mlp import MLP


class DBMTL(Head):
    """Tower k gives features h_k; r_k = MLP(h_k) of a root, MLP([h_k, r_parent]) of a child; logits are linear in r.

    Every task predicts p(task) over all impressions and is trained on the root's whole space; nothing forces
    p(child) <= p(parent).

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower
        relation_hidden: widths of the MLP that gives r; at least one
        sampling_rates: the share of each task's negatives that training sees; of tasks with neither parent nor child
        options: see `TowerOptions`

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle, or `relation_hidden` is empty.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Widths = (64,),
        relation_hidden: NonEmptyWidths = (32,),
        sampling_rates: Sequence[float] | None = None,
        **options: Unpack[TowerOptions],
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        if not relation_hidden:
            raise ValueError("relation_hidden must have at least one width: its features are what a child reads")
        width, own = relation_hidden[-1], (tower_hidden or [input_dim])[-1]
        self.tower_dim = own
        self.towers = hidden_bank(len(tasks), input_dim, tower_hidden, **options)
        self.relations = by_task(
            tasks, lambda slot: MLP(own + (0 if parents[slot] is None else width), relation_hidden)
        )
        self.logits = TaskLogits(len(tasks), width)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        features = list(self.towers(fused).unbind(1))
        relations = list(self.relations.values())
        for slot in self.order:
            parent = self.parents[slot]
            inputs = features[slot] if parent is None else torch.cat([features[slot], features[parent]], dim=1)
            features[slot] = relations[slot](inputs)
        return self.over_impressions(self.logits(torch.stack(features, dim=1)))

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        """What a child reads of its parent means nothing under another parent."""
        axes = prefixed("towers", hidden_axes(self.towers, tasks)) | prefixed("logits", self.logits.axes(tasks))
        for task, parent in zip(self.tasks, self.parents, strict=True):
            if parent is not None:
                of_parent = units([("parent", tasks[parent])], self.logits.weight.shape[2])
                columns = [*units(["own"], self.tower_dim), *of_parent]
                axes[f"relations.task_{task}.net.0.weight"] = (None, columns)
        return axes

    def set_bias(self, values: Sequence[float]) -> None:
        self.logits.set_bias(values)
