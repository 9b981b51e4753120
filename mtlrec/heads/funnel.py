"""Probabilities along the task graph, in log space.

B batch, T tasks, H width of a fusion output. `parents[k]` is the index of the task that task k follows, or None.

p(k) over all impressions is the product of the conditionals on the path from the root, so p(child) <= p(parent) holds
by construction. It is formed as log p and log(1 - p), each in float32 and without subtracting nearly equal numbers:

    log p_k       = log p_parent + logsigmoid(x_k)
    log (1 - p_k) = logaddexp(log (1 - p_parent), log p_parent + logsigmoid(-x_k))

which stays finite, with finite gradients, for logits of +-100 (log(-expm1(log p)) does not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
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


class ProbabilityChain(nn.Module):
    """Conditional logits [B, T] -> log p and log(1 - p) over all impressions, [B, T] each.

    Tasks of the same depth are computed at once, the roots first.

    Args:
        parents: index of the task each one follows, or None

    Raises:
        ValueError: where the edges form a cycle.
    """

    def __init__(self, parents: Sequence[int | None]) -> None:
        super().__init__()
        depths: dict[int, int] = {}
        for task in topological_order(parents):
            parent = parents[task]
            depths[task] = 0 if parent is None else depths[parent] + 1
        self.max_depth = max(depths.values(), default=0)
        for depth in range(1, self.max_depth + 1):
            tasks = [task for task in range(len(parents)) if depths[task] == depth]
            followed = [parent for task in tasks if (parent := parents[task]) is not None]
            self.register_buffer(f"tasks_{depth}", torch.tensor(tasks), persistent=False)
            self.register_buffer(f"parents_{depth}", torch.tensor(followed), persistent=False)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        own, not_own = logsigmoid(logits), logsigmoid(-logits)
        log_p, log_not_p = own, not_own
        for tasks, parents in self._levels():
            above = log_p.index_select(1, parents)
            not_above = log_not_p.index_select(1, parents)
            here = above + own.index_select(1, tasks)
            not_here = torch.logaddexp(not_above, above + not_own.index_select(1, tasks))
            log_p, log_not_p = log_p.index_copy(1, tasks, here), log_not_p.index_copy(1, tasks, not_here)
        return log_p, log_not_p

    def log_product(self, log_conditional: Tensor) -> Tensor:
        """log p over all impressions, of log p(task | parent)."""
        log_p = log_conditional
        for tasks, parents in self._levels():
            here = log_p.index_select(1, parents) + log_conditional.index_select(1, tasks)
            log_p = log_p.index_copy(1, tasks, here)
        return log_p

    def _levels(self) -> Iterator[tuple[Tensor, Tensor]]:
        """From the roots' children on: tasks of a depth, and the parent of each."""
        for depth in range(1, self.max_depth + 1):
            yield getattr(self, f"tasks_{depth}"), getattr(self, f"parents_{depth}")
