"""Entire Space Counterfactual Multi-Task Model (Wang et al., SIGIR 2022): ESMM with a second risk for its children."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Unpack

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from mtlrec.heads.esmm import ESMM
from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.head import RowLosses
from mtlrec.heads.towers import TowerOptions, Towers
from mtlrec.layers.blocks.arguments import NonNegative, Share, Widths
from mtlrec.layers.blocks.axes import Axes, prefixed


class ESCM2(ESMM):
    """ESMM, with p(child | parent) trained by inverse propensity as well.

    With o the parent's label, e the cross entropy of p(child | parent) and q = p(parent), detached and at least
    `propensity_floor`, the risk of a row is o e / q.

    Args:
        tasks, parents, input_dim, tower_hidden, sampling_rates, options: as for `ESMM`
        propensity_floor: p(parent) counts as at least this
        conditional_weight: of the risk of p(child | parent)
        entire_weight: of the loss of p(child), ESMM's

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
        propensity_floor: Share = 0.05,
        conditional_weight: NonNegative = 1.0,
        entire_weight: NonNegative = 1.0,
        sampling_rates: Sequence[float] | None = None,
        **options: Unpack[TowerOptions],
    ) -> None:
        super().__init__(tasks, parents, input_dim, tower_hidden, sampling_rates, **options)
        self.propensity_floor = propensity_floor
        self.conditional_weight, self.entire_weight = conditional_weight, entire_weight

    def add_terms(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, row_losses: RowLosses) -> Tensor:
        if not len(self.child_slots):
            return rows
        logits = outputs.value
        conditional = outputs._replace(log_p=logsigmoid(logits), log_not_p=logsigmoid(-logits))
        error = self.of_children(row_losses(conditional, targets))
        propensity = self.of_parents(outputs.log_p.detach()).exp().clamp(min=self.propensity_floor)
        risk = self.risk(error, self.of_parents(targets) / propensity, outputs)
        of_children = self.entire_weight * self.of_children(rows) + self.conditional_weight * risk
        return rows.index_copy(1, self.child_slots, of_children)

    def risk(self, error: Tensor, inverse: Tensor, outputs: HeadOutput) -> Tensor:
        """[B, C], of the cross entropies e and the weights o / q."""
        return inverse * error


class DoublyRobustESCM2(ESCM2):
    """ESMM, with p(child | parent) trained by a doubly robust risk as well.

    A tower of its own imputes the loss d of every child's p(child | parent). The risk of a row is
    d + o (e - d) / q + o (e - d)^2 / q, with o, e and q as in `ESCM2`.

    The square teaches the imputation tower alone: in it e is detached. Let through, its gradient multiplies a clicked
    row's loss by 1 + 2 (e - d), which for a rare child weighs the positives many times over and makes p(child | parent)
    as many times too large (docs/heads.md).

    Args:
        tasks, parents, input_dim, tower_hidden, sampling_rates, options: as for `ESMM`; the imputation towers have the
            same widths
        propensity_floor: p(parent) counts as at least this
        conditional_weight: of the risk of p(child | parent)
        entire_weight: of the loss of p(child), ESMM's

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each, `imputed` of `[B, C]`.

    Raises:
        ValueError: where the edges form a cycle.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Widths = (64,),
        propensity_floor: Share = 0.05,
        conditional_weight: NonNegative = 1.0,
        entire_weight: NonNegative = 1.0,
        sampling_rates: Sequence[float] | None = None,
        **options: Unpack[TowerOptions],
    ) -> None:
        weights = propensity_floor, conditional_weight, entire_weight
        super().__init__(tasks, parents, input_dim, tower_hidden, *weights, sampling_rates, **options)
        num_children = len(self.child_slots)
        self.imputations = Towers(num_children, input_dim, tower_hidden, **options) if num_children else None

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        outputs = super().forward(fused)
        if self.imputations is None or not self.training:
            return outputs
        return outputs._replace(imputed=softplus(self.imputations(fused.index_select(1, self.child_slots))))

    def risk(self, error: Tensor, inverse: Tensor, outputs: HeadOutput) -> Tensor:
        imputed = outputs.imputed
        assert imputed is not None
        return imputed + inverse * (error - imputed) + inverse * (error.detach() - imputed).square()

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        if self.imputations is None:
            return super().axes(tasks)
        children = [task for task, parent in zip(tasks, self.parents, strict=True) if parent is not None]
        return super().axes(tasks) | prefixed("imputations", self.imputations.axes(children))
