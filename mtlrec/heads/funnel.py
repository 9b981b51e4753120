"""Probabilities along the task graph, in log space.

B batch, T tasks, H width of a fusion output. `parents[k]` is the index of the task that task k follows, or None.

p(k) over all impressions is the product of the conditionals on the path from the root, so p(child) <= p(parent) holds
by construction. It is formed as log p and log(1 - p), each in float32 and without subtracting nearly equal numbers:

    log p_k       = log p_parent + logsigmoid(x_k)
    log (1 - p_k) = logaddexp(log (1 - p_parent), log p_parent + logsigmoid(-x_k))

which stays finite, with finite gradients, for logits of +-100 (log(-expm1(log p)) does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class HeadOutput(NamedTuple):
    """What a head says of every task, each `[B, T]` float32.

    value: the tower's output: the logit of a binary task, the prediction of a regression
    log_p, log_not_p: of the probability that the task's loss is taken on
    log_entire_p: of p(task) over all impressions

    The last three mean nothing for a regression task.
    """

    value: Tensor
    log_p: Tensor
    log_not_p: Tensor
    log_entire_p: Tensor

    def predictions(self, is_binary: Tensor) -> Tensor:
        """[B, T]: p(task) over all impressions where `is_binary` [T], the value otherwise."""
        return torch.where(is_binary, self.log_entire_p.exp(), self.value)


def topological_order(parents: Sequence[int | None]) -> list[int]:
    """Parents before children. Raises ValueError where the edges form a cycle."""
    order: list[int] = []
    waiting = list(range(len(parents)))
    while waiting:
        ready = [task for task in waiting if parents[task] is None or parents[task] in order]
        if not ready:
            raise ValueError(f"the task graph has a cycle among tasks {waiting}")
        order += ready
        waiting = [task for task in waiting if task not in ready]
    return order


def chain(logits: Tensor, parents: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    """Conditional logits [B, T] -> log p and log(1 - p) over all impressions, [B, T] each.

    Raises ValueError where the edges form a cycle.
    """
    log_p: dict[int, Tensor] = {}
    log_not_p: dict[int, Tensor] = {}
    for task in topological_order(parents):
        parent, logit = parents[task], logits[:, task]
        if parent is None:
            log_p[task], log_not_p[task] = logsigmoid(logit), logsigmoid(-logit)
        else:
            log_p[task] = log_p[parent] + logsigmoid(logit)
            log_not_p[task] = torch.logaddexp(log_not_p[parent], log_p[parent] + logsigmoid(-logit))
    tasks = range(len(parents))
    return torch.stack([log_p[task] for task in tasks], 1), torch.stack([log_not_p[task] for task in tasks], 1)
