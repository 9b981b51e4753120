"""Which experts of a level are computed together: groups that share an input or have a slot each, within a limit.

Shapes: B batch, E experts, S slots, k experts of a group, D input width, H width of an expert's layer.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Experts computed together, and the slots they read."""

    experts: slice
    slots: int | slice | None
    """One slot for all of them; a slot each; None where the input has no slots."""
    is_first_of_slot: bool

    def input(self, x: Tensor) -> Tensor:
        """What the group reads: `[B, D]`, or `[k, B, D]` where each expert has a slot of its own."""
        match self.slots:
            case None:
                return x
            case int():
                return x[:, self.slots]
            case _:
                return x[:, self.slots].transpose(0, 1)


def plan_groups(x: Tensor, experts_per_slot: Sequence[int], width: int, limit: int) -> list[Group]:
    """Groups of neighboring experts whose widest activation is at most `limit` bytes.

    The experts of a group read one input, or a slot each. A group of one computes plain products, which for large
    batches are as fast.

    Args:
        x: `[B, D]` or `[B, S, D]`.
        experts_per_slot: adds up to E.
        width: H of the widest layer.
        limit: in bytes.

    Example:
        >>> two_experts = 2 * 4 * 16 * 4  # rows, width, bytes of a float32
        >>> [group.experts for group in plan_groups(torch.empty(4, 8), [6], width=16, limit=two_experts)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    rows, num_experts = max(1, x.shape[0]), sum(experts_per_slot)
    most = max(1, limit // (rows * width * x.element_size()))
    if rows >= 2 * x.shape[-1]:
        # Activations outweigh weights: half of them are to be gone before the gradients of the other half come.
        most = min(most, -(-num_experts // 2))
    most -= most % min(most, torch.get_num_threads())
    if goes_to_onednn(x):
        most = 1
    if x.dim() == 2:
        return [Group(experts, None, i == 0) for i, experts in enumerate(_cut(0, num_experts, most))]
    if len(experts_per_slot) == num_experts:
        cuts = list(_cut(0, num_experts, most))
        return [Group(cut, cut if cut.stop - cut.start > 1 else cut.start, True) for cut in cuts]
    ends = list(accumulate(experts_per_slot))
    return [
        Group(experts, slot, i == 0)
        for slot, (count, end) in enumerate(zip(experts_per_slot, ends, strict=True))
        for i, experts in enumerate(_cut(end - count, end, most))
    ]


def goes_to_onednn(tensor: Tensor) -> bool:
    """On a CPU products of 16-bit numbers do. It copies what is not dense, as the matrices of several experts side by
    side are not; those of one are, and all threads share its product."""
    return tensor.device.type == "cpu" and tensor.element_size() == 2


def _cut(start: int, stop: int, most: int) -> Iterator[slice]:
    """The range in as few pieces of at most `most` as it takes, alike but for the last.

    A batched product gives each thread whole experts: where `most` is a multiple of the threads, so are the pieces.
    """
    count, threads = stop - start, torch.get_num_threads()
    size = -(-count // -(-count // most))
    if most % threads == 0:
        size += -size % threads
    return (slice(a, min(a + size, stop)) for a in range(start, stop, size))
