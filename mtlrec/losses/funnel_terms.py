"""What some heads add to the losses of a funnel's children, row by row.

B batch, T tasks. A term gets the rows' losses [B, T] as the head alone would have them, and gives them back with its
own; they are then masked, weighted and averaged over the global batch like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses.task_losses import TaskLoss

FunnelTerm = Callable[[Tensor, HeadOutput, Tensor, Sequence[TaskLoss]], Tensor]
"""(rows' losses [B, T], outputs, targets [B, T], tasks) -> rows' losses [B, T]"""


class ExpectationCalibrator:
    """AITM's behavioral expectation calibrator (Xi et al., KDD 2021): alpha * max(0, p(child) - p(parent)).

    Args:
        parents: index of the task each one follows, or None
        alpha: its weight
    """

    def __init__(self, parents: Sequence[int | None], alpha: float = 0.6) -> None:
        self.parents, self.alpha = list(parents), alpha

    def __call__(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, tasks: Sequence[TaskLoss]) -> Tensor:
        p = outputs.log_p.exp()
        columns = [
            rows[:, task] if parent is None else rows[:, task] + self.alpha * relu(p[:, task] - p[:, parent])
            for task, parent in enumerate(self.parents)
        ]
        return torch.stack(columns, dim=1)


class Counterfactual:
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
        self.parents, self.doubly_robust, self.floor = list(parents), doubly_robust, floor
        self.conditional_weight, self.entire_weight = conditional_weight, entire_weight

    def __call__(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, tasks: Sequence[TaskLoss]) -> Tensor:
        columns = []
        for task, parent in enumerate(self.parents):
            if parent is None:
                columns.append(rows[:, task])
                continue
            logit, observed = outputs.value[:, task], targets[:, parent]
            error = tasks[task].cross_entropy(targets[:, task], logsigmoid(logit), logsigmoid(-logit))
            inverse = observed / outputs.log_p[:, parent].detach().exp().clamp(min=self.floor)
            risk = self._risk(error, inverse, None if outputs.imputed is None else outputs.imputed[:, task])
            columns.append(self.entire_weight * rows[:, task] + self.conditional_weight * risk)
        return torch.stack(columns, dim=1)

    def _risk(self, error: Tensor, inverse: Tensor, imputed: Tensor | None) -> Tensor:
        if not self.doubly_robust:
            return inverse * error
        assert imputed is not None, "the head has no imputation towers"
        return imputed + inverse * (error - imputed) + inverse * (error.detach() - imputed).square()
