"""Masked losses, normalised over the *global* batch, weighted and summed.

B batch (of this rank), T tasks. L_k = sum_i d_ki loss_ki / sum_i d_ki with both sums over all ranks: a rank with three
clicks does not weigh as much as one with three hundred. DDP and TorchRec's collectives divide gradients by the world
size, so the local loss is world_size * local numerator / global denominator. An empty space contributes 0 through a
multiplication, never by leaving a task out: DDP wants the same graph every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses.spaces import Populations, SampleSpaces
from mtlrec.losses.task_losses import binary_cross_entropy, squared_error


class LossReport(NamedTuple):
    """Detached, [T] each: a task's global loss, its rows over all ranks, whether this rank's part is finite."""

    losses: Tensor
    rows: Tensor
    local_is_finite: Tensor
    populations: Populations


class MultiTaskLoss(nn.Module):
    """(head output, labels) -> (scalar to call backward on, report).

    Args:
        is_binary: per task, binary (cross entropy) or regression (squared error)
        spaces: the tasks' populations
        weights: per task; `set_weights` changes them between steps
    """

    task_weights: Tensor

    def __init__(self, is_binary: Sequence[bool], spaces: SampleSpaces, weights: Sequence[float]) -> None:
        super().__init__()
        self.is_binary = list(is_binary)
        self.spaces = spaces
        self.register_buffer("task_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def set_weights(self, weights: Sequence[float]) -> None:
        self.task_weights.copy_(torch.tensor(weights, dtype=torch.float32))

    def forward(
        self, outputs: HeadOutput, labels: Tensor, label_mask: Tensor, weights: Tensor
    ) -> tuple[Tensor, LossReport]:
        """labels, label_mask [B, C]; weights [B], 0 for padding rows."""
        populations = self.spaces(labels, label_mask, weights)
        in_space = populations.space * weights[:, None]
        targets = populations.targets.where(in_space > 0, 0.0)  # outside, a label may be anything: 0 * inf is NaN
        numerators = (in_space * self._row_losses(outputs, targets)).sum(0)
        totals, world_size = _sum_over_ranks(torch.stack([numerators.detach(), in_space.sum(0)]))
        denominators = totals[1].where(totals[1] > 0, 1.0)
        loss = (self.task_weights * world_size * numerators / denominators).sum()
        finite = torch.isfinite(numerators.detach())
        return loss, LossReport(totals[0] / denominators, totals[1], finite, populations)

    def _row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        columns = [
            binary_cross_entropy(targets[:, task], outputs.log_p[:, task], outputs.log_not_p[:, task])
            if is_binary
            else squared_error(targets[:, task], outputs.value[:, task])
            for task, is_binary in enumerate(self.is_binary)
        ]
        return torch.stack(columns, dim=1)


def _sum_over_ranks(values: Tensor) -> tuple[Tensor, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return values, 1
    dist.all_reduce(values)
    return values, dist.get_world_size()
