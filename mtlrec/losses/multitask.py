"""Masked losses, normalized over the *global* batch, weighted and summed.

B batch (of this rank), T tasks. L_k = sum_i d_ki w_ki loss_ki / sum_i d_ki w_ki with both sums over all ranks: a rank
with three clicks does not weigh as much as one with three hundred. DDP and TorchRec's collectives divide gradients by
the world size, so the local loss is world_size * local numerator / global denominator. An empty space contributes 0
through a multiplication, never by leaving a task out: DDP wants the same graph every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.head import RowLosses
from mtlrec.losses.balancing import Balancing, Totals
from mtlrec.losses.task_loss import TaskLoss
from mtlrec.losses.task_losses import TaskLosses

AddTerms = Callable[[Tensor, HeadOutput, Tensor, RowLosses], Tensor]


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
        losses: of each task
        weights: per task; `set_weights` changes them between steps
        balancing: what else multiplies the weighted losses in training, or None
        add_terms: what a head adds to its tasks' losses in training (`Head.add_terms`)
    """

    task_weights: Tensor

    def __init__(
        self,
        losses: Sequence[TaskLoss],
        weights: Sequence[float],
        balancing: Balancing | None = None,
        add_terms: AddTerms | None = None,
    ) -> None:
        super().__init__()
        self.losses = TaskLosses(losses)
        self.balancing = balancing
        self.add_terms = add_terms
        self.register_buffer("task_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def set_weights(self, weights: Tensor) -> None:
        """[T], on the device of the loss: a copy from the host would be waited for."""
        self.task_weights.copy_(weights)

    def forward(
        self,
        outputs: HeadOutput,
        targets: Tensor,
        in_space: Tensor,
        sample_weights: Tensor,
        pooled: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, LossReport]:
        """targets, in_space and sample_weights [B, T] of a `Batch`; pooled, what balancing takes gradients of."""
        row_weights = in_space * sample_weights
        numerators = (row_weights * self._row_losses(outputs, targets)).sum(0)
        local_sums, rows = numerators.detach(), in_space.sum(0, dtype=row_weights.dtype)
        sums, world_size = _sum_over_ranks(torch.stack([local_sums, row_weights.sum(0), rows]))
        totals = Totals(sums[0], sums[1])
        denominators = totals.denominators + (totals.denominators == 0)
        parts = numerators * (self.task_weights / denominators)
        loss, coefficients = self._weighed(parts, totals, pooled, world_size)
        return loss, LossReport(totals.numerators / denominators, sums[2], coefficients, local_sums)

    def _weighed(
        self, parts: Tensor, totals: Totals, pooled: Sequence[Tensor] | None, world_size: int
    ) -> tuple[Tensor, Tensor]:
        """The sum of the parts by their coefficients, and what the tasks' losses are multiplied by in all [T].

        What balancing adds is the same on all ranks, so the mean of its gradients is right as it is.
        """
        if self.balancing is None or not self._balances():
            return _times(parts.sum(), world_size), self.task_weights.clone()
        weighted = Totals(self.task_weights * totals.numerators, totals.denominators)
        coefficients, added = self.balancing(weighted, parts, pooled)
        loss = _times((coefficients * parts).sum(), world_size) + added
        return loss, (self.task_weights * coefficients).detach()

    def _balances(self) -> bool:
        """In training only: an evaluation has no gradients to weigh and must leave the balancer's state alone."""
        return self.training and torch.is_grad_enabled()

    def _row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        rows = self.losses.row_losses(outputs, targets)
        if self.add_terms is None or not self.training:
            return rows
        return self.add_terms(rows, outputs, targets, self.losses.row_losses)


def _times(loss: Tensor, world_size: int) -> Tensor:
    """Without an operator where there is one rank."""
    return loss * world_size if world_size > 1 else loss


def _sum_over_ranks(values: Tensor) -> tuple[Tensor, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return values, 1
    with torch.profiler.record_function("mtlrec::sum_over_ranks"):
        dist.all_reduce(values)
    return values, dist.get_world_size()
