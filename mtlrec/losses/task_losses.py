"""The loss of one row, by kind of task. [B] in, [B] out."""

from __future__ import annotations

from torch import Tensor


def binary_cross_entropy(target: Tensor, log_p: Tensor, log_not_p: Tensor) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)), from log probabilities, so that no probability is rounded to 0 or 1."""
    return -(target * log_p + (1 - target) * log_not_p)


def squared_error(target: Tensor, value: Tensor) -> Tensor:
    return (value - target).square()
