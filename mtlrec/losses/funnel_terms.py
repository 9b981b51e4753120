"""What some heads add to the losses of a funnel's children, row by row.

B batch, T tasks, C children (tasks with a parent, in the order of the tasks). A term gets the rows' losses [B, T] as
the head alone would have them, and gives them back with its own. They are then masked, weighted and averaged over the
global batch like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, relu

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses.task_losses import TaskLosses


class FunnelTerm(nn.Module):
    """Base: `forward(rows [B, T], outputs, targets [B, T], losses of the tasks) -> rows [B, T]`.

    Args:
        parents: index of the task each one follows, or None
    """

    child_slots: Tensor
    parent_slots: Tensor

    def __init__(self, parents: Sequence[int | None]) -> None:
        super().__init__()
        children = [task for task, parent in enumerate(parents) if parent is not None]
        followed = [parent for parent in parents if parent is not None]
        self.register_buffer("child_slots", torch.tensor(children, dtype=torch.int64), persistent=False)
        self.register_buffer("parent_slots", torch.tensor(followed, dtype=torch.int64), persistent=False)

    def forward(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, losses: TaskLosses) -> Tensor:
        raise NotImplementedError

    def of_children(self, values_BT: Tensor) -> Tensor:
        """[B, C]"""
        return values_BT.index_select(1, self.child_slots)

    def of_parents(self, values_BT: Tensor) -> Tensor:
        """[B, C]: each child's parent's."""
        return values_BT.index_select(1, self.parent_slots)


class ExpectationCalibrator(FunnelTerm):
    """AITM's behavioral expectation calibrator (Xi et al., KDD 2021): alpha * max(0, p(child) - p(parent)).

    Args:
        parents: index of the task each one follows, or None
        alpha: its weight
    """

    def __init__(self, parents: Sequence[int | None], alpha: float = 0.6) -> None:
        super().__init__(parents)
        self.alpha = alpha

    def forward(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, losses: TaskLosses) -> Tensor:
        p = outputs.log_p.exp()
        excess = relu(self.of_children(p) - self.of_parents(p))
        return rows.index_add(1, self.child_slots, excess, alpha=self.alpha)


class Counterfactual(FunnelTerm):
    """ESCM2's risks of p(child | parent) (Wang et al., SIGIR 2022), beside ESMM's loss of p(child).

    With o the parent's label, e the cross entropy of p(child | parent), q = p(parent), detached and at least `floor`,
    and d the imputed loss:

        inverse propensity    o e / q
        doubly robust         d + o (e - d) / q + o (e - d)^2 / q

    The square teaches the imputation tower alone: in it e is detached. Let through, its gradient multiplies a clicked
    row's loss by 1 + 2 (e - d), which for a rare child weighs the positives many times over and makes p(child | parent)
    as many times too large (docs/heads.md).

    Args:
        parents: index of the task each one follows, or None
        doubly_robust: the second risk; needs a head with imputation towers
        floor: of the propensity
        conditional_weight: of this risk
        entire_weight: of the loss of p(child)
    """

    def __init__(
        self,
        parents: Sequence[int | None],
        doubly_robust: bool,
        floor: float = 0.05,
        conditional_weight: float = 1.0,
        entire_weight: float = 1.0,
    ) -> None:
        super().__init__(parents)
        self.doubly_robust, self.floor = doubly_robust, floor
        self.conditional_weight, self.entire_weight = conditional_weight, entire_weight

    def forward(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, losses: TaskLosses) -> Tensor:
        if not len(self.child_slots):
            return rows
        logits = outputs.value
        conditional = outputs._replace(log_p=logsigmoid(logits), log_not_p=logsigmoid(-logits))
        error = self.of_children(losses.row_losses(conditional, targets))
        propensity = self.of_parents(outputs.log_p.detach()).exp().clamp(min=self.floor)
        risk = self._risk(error, self.of_parents(targets) / propensity, outputs.imputed)
        of_children = self.entire_weight * self.of_children(rows) + self.conditional_weight * risk
        return rows.index_copy(1, self.child_slots, of_children)

    def _risk(self, error: Tensor, inverse: Tensor, imputed: Tensor | None) -> Tensor:
        if not self.doubly_robust:
            return inverse * error
        assert imputed is not None, "the head has no imputation towers"
        return imputed + inverse * (error - imputed) + inverse * (error.detach() - imputed).square()
