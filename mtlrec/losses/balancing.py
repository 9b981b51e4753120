"""What multiplies the tasks' losses, from the losses themselves or from their gradients.

T tasks. A balancer sees the weighted losses of the global batch and gives every task's coefficient c_k; what is stepped
is sum_k c_k L_k, in one backward pass. FBGEMM applies the tables' optimizer inside backward, so a pass per task through
the tables would be T updates: the methods on gradients therefore look at the gradients with respect to the *pooled
embeddings* alone (the upper-bound approximation of MGDA, Sener and Koltun 2018), which costs T passes through the dense
part and none through the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Totals(NamedTuple):
    """Over all ranks, detached: [T] each. A task's loss is numerator / denominator; both are 0 where it has no rows."""

    numerators: Tensor
    denominators: Tensor


Coefficients = tuple[Tensor, Tensor | float]
"""(c [T], what is added to the loss)"""


class Balancing(nn.Module):
    """Base: `forward(totals, parts, pooled) -> (c [T], what is added to the loss)`.

    `totals` are the global batch's losses; `parts` [T] is this rank's share of each, with its graph; `pooled` are
    the features' pooled vectors that they were computed from. Parameters are trained with the dense part, buffers are
    saved with it.
    """

    def forward(self, totals: Totals, parts: Tensor, pooled: Sequence[Tensor] | None) -> Coefficients:
        raise NotImplementedError


class Uncertainty(Balancing):
    """sum_k L_k / (2 exp s_k) + s_k / 2 with a learned s_k per task (Kendall et al., CVPR 2018).

    The minimum over s_k is at exp s_k = L_k, so a task's weight follows 1 / (2 L_k). Where a task has no rows, its s_k
    stays as it is.

    Args:
        num_tasks: T
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, totals: Totals, parts: Tensor, pooled: Sequence[Tensor] | None) -> Coefficients:
        has_loss = totals.numerators != 0
        return 0.5 * torch.exp(-self.log_variances), 0.5 * (self.log_variances * has_loss).sum()


class DynamicWeightAverage(Balancing):
    """c_k = T softmax_k(r_k / temperature), r_k the last window's mean loss over that of the window before it.

    (Liu et al., CVPR 2019, with windows of any number of steps in place of epochs.) In the first two windows, and for a
    task that had no rows in one of the two, r_k = 1.

    Args:
        num_tasks: T
        temperature: large makes the weights equal
        window: steps
    """

    sums: Tensor
    means: Tensor
    steps: Tensor

    def __init__(self, num_tasks: int, temperature: float = 2.0, window: int = 1000) -> None:
        super().__init__()
        self.temperature, self.window = temperature, window
        self.register_buffer("sums", torch.zeros(2, num_tasks, dtype=torch.float64))
        self.register_buffer("means", torch.full((2, num_tasks), math.nan, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, totals: Totals, parts: Tensor, pooled: Sequence[Tensor] | None) -> Coefficients:
        coefficients = self.coefficients()
        self.sums += torch.stack([totals.numerators, totals.denominators])
        self.steps += 1
        self._end_window(self.steps >= self.window)
        return coefficients.to(parts.dtype), 0.0

    def _end_window(self, is_over: Tensor) -> None:
        """Where `is_over` (0-dimensional) is true; asked on the device, so that the host need not wait for it."""
        means = torch.stack([self.sums[0] / self.sums[1], self.means[0]])
        self.means.copy_(torch.where(is_over, means, self.means))
        self.sums.masked_fill_(is_over, 0.0)
        self.steps.masked_fill_(is_over, 0)

    def coefficients(self) -> Tensor:
        """[T]; `means` holds the last window's, then those of the one before."""
        ratios = torch.nan_to_num(self.means[0] / self.means[1], nan=1.0, posinf=1.0)
        return len(ratios) * torch.softmax(ratios / self.temperature, dim=0)


def decayed_weights(initial: Tensor, rate: Tensor, time: int) -> Tensor:
    """[T]: w_k(t) = w_k0 * rate_k ** t (Tang et al., RecSys 2020, section 4.3), t counted in epochs or steps."""
    return initial * rate.pow(time)


def gradients_on(pooled: Sequence[Tensor], parts: Tensor) -> Tensor:
    """[T, numbers in pooled] float64: of each task's loss, backward from it to the pooled vectors and no further; 0 for
    a task that reads none of them."""
    gradients = [torch.autograd.grad(part, pooled, retain_graph=True, materialize_grads=True) for part in parts]
    return torch.stack([torch.cat([of.flatten() for of in gradient]).double() for gradient in gradients])


class GradientBalancing(Balancing):
    """c from the T x T matrix of the tasks' gradients' inner products.

    A row of the pooled embeddings belongs to one rank, so the ranks' matrices add up to that of the global batch. Rank
    0 turns the sum into coefficients and tells the others: some methods draw random numbers.

    A method made for shared parameters may give a task a negative weight (Aligned-MTL does). Here the coefficients
    multiply whole losses, a task's own tower among what they train, and a negative one would make it unlearn: they are
    kept at 0 or above.

    A task without a gradient, whose space is empty in this batch, is left out: MGDA would follow it and stop.

    Args:
        weighting: [K, K] float64 positive semidefinite -> [K], one of TorchJD's weightings for example
        of_mean: whether the method weighs the mean of K tasks; its coefficients are then multiplied by K
    """

    def __init__(self, weighting: Callable[[Tensor], Tensor], of_mean: bool = False) -> None:
        super().__init__()
        self.weighting, self.of_mean = weighting, of_mean

    def forward(self, totals: Totals, parts: Tensor, pooled: Sequence[Tensor] | None) -> Coefficients:
        if pooled is None:
            raise ValueError("balancing on gradients needs the pooled embeddings that the losses were computed from")
        gradients = gradients_on(pooled, parts)
        gram = gradients @ gradients.T
        across_ranks = dist.is_available() and dist.is_initialized()
        if across_ranks:
            dist.all_reduce(gram)
        coefficients = torch.ones(len(parts), dtype=parts.dtype, device=parts.device)
        if not across_ranks or dist.get_rank() == 0:
            self._weigh(gram, coefficients)
        if across_ranks:
            dist.broadcast(coefficients, src=0)
        return coefficients, 0.0

    def _weigh(self, gram: Tensor, coefficients: Tensor) -> None:
        """Overwrites the coefficients of the tasks that have a gradient."""
        present = torch.nonzero(gram.diagonal() > 0).squeeze(1)
        if len(present) and bool(torch.isfinite(gram).all()):  # a loss that is not finite ends the step, not this
            gram = gram[present][:, present]
            weights = self.weighting(gram / gram.trace()).clamp(min=0)  # TorchJD takes what is small for nothing
            coefficients[present] = (weights * (len(present) if self.of_mean else 1)).to(coefficients.dtype)
