"""Entire Space Multi-Task Model (Ma et al., SIGIR 2018), for any forest of tasks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlrec.heads.funnel import HeadOutput, ProbabilityChain
from mtlrec.heads.head import Head
from mtlrec.heads.towers import Towers
from mtlrec.layers.blocks.experts import Activation, Norm


class ESMM(Head):
    """Tower k gives the conditional p(k | parent); the loss is taken on p(k), over the root's whole space.

    No tower is trained on a sample that its parent selected, so none inherits the selection's bias; and
    p(child) <= p(parent) by construction.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower's hidden layers
        activation, norm, dropout: of the towers' hidden layers, as for experts (`layers.ExpertOptions`)
        sampling_rates: the share of each task's negatives that training sees; of tasks without a parent

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
        activation: Activation = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        sampling_rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__(tasks, parents, sampling_rates)
        self.chain = ProbabilityChain(parents)
        self.towers = Towers(len(tasks), input_dim, tower_hidden, activation, norm, dropout)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        logits = self.towers(fused)
        log_p, log_not_p = self.chain(self.as_sampled(logits))
        return HeadOutput(logits, log_p, log_not_p, log_p)

    def set_bias(self, values: Sequence[float]) -> None:
        self.towers.logits.set_bias(values)
