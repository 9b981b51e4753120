"""Entire Space Multi-Task Model (Ma et al., SIGIR 2018), for any forest of tasks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

from torch import Tensor

from mtlrec.heads.funnel import HeadOutput, ProbabilityChain
from mtlrec.heads.head import Head
from mtlrec.heads.towers import TowerOptions, Towers
from mtlrec.layers.blocks.arguments import Widths
from mtlrec.layers.blocks.axes import Axes, prefixed


class ESMM(Head):
    """Tower k gives the conditional p(k | parent); the loss is taken on p(k), over the root's whole space.

    No tower is trained on a sample that its parent selected, so none inherits the selection's bias; and
    p(child) <= p(parent) by construction.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower's hidden layers
        sampling_rates: the share of each task's negatives that training sees; of tasks without a parent
        options: see `TowerOptions`

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle.
    """

    multiplies = corrects_parents = True

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Widths = (64,),
        sampling_rates: Sequence[float] | None = None,
        **options: Unpack[TowerOptions],
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        self.chain = ProbabilityChain(parents)
        self.towers = Towers(len(tasks), input_dim, tower_hidden, **options)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        logits = self.towers(fused)
        log_p, log_not_p = self.chain(self.as_sampled(logits))
        return HeadOutput(logits, log_p, log_not_p, log_p)

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        return prefixed("towers", self.towers.axes(tasks))

    def set_bias(self, values: Sequence[float]) -> None:
        self.towers.logits.set_bias(values)
