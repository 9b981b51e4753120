"""Independent towers, in their conditional form (ESMM paper's BASE) or each on the whole space."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

from torch import Tensor

from mtlrec.heads.funnel import HeadOutput, ProbabilityChain
from mtlrec.heads.head import Head
from mtlrec.heads.towers import TowerOptions, Towers
from mtlrec.layers.blocks.arguments import Widths
from mtlrec.layers.blocks.axes import Axes, prefixed


class Independent(Head):
    """A tower per task that shares nothing with the others.

    Tower k gives p(k | parent) and is trained where the parent is 1 (`conditional`); p(k) over all impressions is the
    product along the path. With `entire_space` tower k gives p(k) itself and is trained on every row.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower's hidden layers
        entire_space: train every tower on p(task), on all rows, in place of p(task | parent) where the parent is 1
        sampling_rates: the share of each task's negatives that training sees; of tasks without a parent, and with
            `entire_space` without children
        options: see `TowerOptions`

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Widths = (64,),
        entire_space: bool = False,
        sampling_rates: Sequence[float] | None = None,
        **options: Unpack[TowerOptions],
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        self.conditional = self.multiplies = self.corrects_parents = not entire_space
        self.chain = ProbabilityChain(parents)
        self.towers = Towers(len(tasks), input_dim, tower_hidden, **options)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        outputs = self.over_impressions(self.towers(fused))
        if not self.conditional:
            return outputs
        return outputs._replace(log_entire_p=self.chain.log_product(outputs.log_entire_p))

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        return prefixed("towers", self.towers.axes(tasks))

    def set_bias(self, values: Sequence[float]) -> None:
        self.towers.logits.set_bias(values)
