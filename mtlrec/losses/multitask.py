"""Masked losses, normalized over the *global* batch, weighted and summed.

B batch (of this rank), T tasks. L_k = sum_i d_ki w_ki loss_ki / sum_i d_ki w_ki with both sums over all ranks: a rank
with three clicks does not weigh as much as one with three hundred. DDP and TorchRec's collectives divide gradients by
the world size, so the local loss is world_size * local numerator / global denominator. An empty space contributes 0
through a multiplication, never by leaving a task out: DDP wants the same graph every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses.balancing import Balancing, Static, Totals
from mtlrec.losses.funnel_terms import FunnelTerm
from mtlrec.losses.task_losses import TaskLoss


class LossReport(NamedTuple):
    """Detached, [T] each.

    losses: the tasks' global losses
    rows: of their spaces, over all ranks
    coefficients: what the losses were multiplied by
    local_sums: this rank's sums of weighted losses, which tell whose rows made a loss that is not finite
    """

    losses: Tensor
    rows: Tensor
    coefficients: Tensor
    local_sums: Tensor


class MultiTaskLoss(nn.Module):
    """(head output, targets, spaces, weights) -> (scalar to call backward on, report).

    Args:
        tasks: what each task's loss is
        weights: per task; `set_weights` changes them between steps
        balancing: what multiplies the weighted losses, by default nothing
        funnel_term: what a head adds to its tasks' losses in training (`funnel_terms.py`)
    """

    task_weights: Tensor

    def __init__(
        self,
        tasks: Sequence[TaskLoss],
        weights: Sequence[float],
        balancing: Balancing | None = None,
        funnel_term: FunnelTerm | None = None,
    ) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.balancing = balancing or Static()
        self.funnel_term = funnel_term
        self.register_buffer("task_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def set_weights(self, weights: Sequence[float]) -> None:
        self.task_weights.copy_(torch.tensor(weights, dtype=torch.float32))

    def forward(
        self,
        outputs: HeadOutput,
        targets: Tensor,
        in_space: Tensor,
        sample_weights: Tensor,
        pooled: Tensor | None = None,
    ) -> tuple[Tensor, LossReport]:
        """targets, in_space and sample_weights [B, T] of a `Batch`; pooled, what balancing takes gradients of."""
        weights = in_space * sample_weights
        numerators = (weights * self._row_losses(outputs, targets)).sum(0)
        rows = in_space.sum(0, dtype=weights.dtype)
        totals, world_size = _sum_over_ranks(torch.stack([numerators.detach(), weights.sum(0), rows]))
        denominators = totals[1].where(totals[1] > 0, 1.0)
        parts = self.task_weights * numerators / denominators
        weighted = Totals(self.task_weights * totals[0], totals[1])
        coefficients, regulariser = self.balancing(weighted, parts, pooled) if self._balances() else (1.0, 0.0)
        loss = world_size * (coefficients * parts).sum() + regulariser
        report = LossReport(
            losses=totals[0] / denominators,
            rows=totals[2],
            coefficients=(self.task_weights * coefficients).detach(),
            local_sums=numerators.detach(),
        )
        return loss, report

    def _balances(self) -> bool:
        """In training only: an evaluation has no gradients to weigh and must leave the balancer's state alone."""
        return self.training and torch.is_grad_enabled()

    def _row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        rows = torch.stack([task.of_rows(outputs, targets, slot) for slot, task in enumerate(self.tasks)], dim=1)
        if self.funnel_term is None or not self.training:
            return rows
        return self.funnel_term(rows, outputs, targets, self.tasks)


def _sum_over_ranks(values: Tensor) -> tuple[Tensor, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return values, 1
    with torch.profiler.record_function("mtlrec::sum_over_ranks"):
        dist.all_reduce(values)
    return values, dist.get_world_size()
