"""Independent towers, in their conditional form (ESMM paper's BASE) or each on the whole space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlrec.heads.funnel import HeadOutput, ProbabilityChain
from mtlrec.heads.head import Head
from mtlrec.heads.towers import Towers
from mtlrec.layers.blocks.experts import Activation, Norm


class Independent(Head):
    """A tower per task that shares nothing with the others.

    Tower k gives p(k | parent) and is trained where the parent is 1 (`conditional`); p(k) over all impressions is the
    product along the path. With `entire_space` tower k gives p(k) itself and is trained on every row.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower's hidden layers
        entire_space: see above
        activation, norm, dropout: of the towers' hidden layers, as for experts (`layers.ExpertOptions`)
        sampling_rates: the share of each task's negatives that training sees; of tasks without a parent, and with
            `entire_space` without children

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Sequence[int] = (),
        entire_space: bool = False,
        activation: Activation = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        sampling_rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        self.conditional = not entire_space
        self.chain = ProbabilityChain(parents)
        self.towers = Towers(len(tasks), input_dim, tower_hidden, activation, norm, dropout)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        outputs = self.over_impressions(self.towers(fused))
        if not self.conditional:
            return outputs
        return outputs._replace(log_entire_p=self.chain.log_product(outputs.log_entire_p))

    def set_bias(self, values: Sequence[float]) -> None:
        self.towers.logits.set_bias(values)
