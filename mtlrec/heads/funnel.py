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

    value: the tower's output: a binary task's logit, a regression's prediction, the logarithm of a watch time
    log_p, log_not_p: of the probability that the task's loss is taken on
    log_entire_p: of p(task) over all impressions
    imputed: [B, C], where a head has imputation towers: the losses it expects of p(task | parent), of the C tasks that
        have a parent

    Probabilities mean nothing for tasks that are not binary.
    """

    value: Tensor
    log_p: Tensor
    log_not_p: Tensor
    log_entire_p: Tensor
    imputed: Tensor | None = None

    def detach(self) -> HeadOutput:
        return HeadOutput(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]


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


def sampling_shift(rates: Sequence[float] | None, num_tasks: int) -> Tensor:
    """[T]: what the logits of rows whose negatives were down-sampled lie above the true ones, -log(rate).

    Of the rows with label 0 a share `rate` was kept, so the odds of label 1 among what was kept are 1 / rate times the
    true ones (He et al., ADKDD 2014, equation 7). With the shift added in training only, a head learns true logits.
    """
    return -torch.tensor([1.0] * num_tasks if rates is None else list(rates)).log()


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
