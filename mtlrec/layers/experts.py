"""A bank of experts: E MLPs of one shape, stacked: a level is then a handful of matrix products, not E times as many.

Shapes: B batch, E experts, S slots (inputs the experts read), D input width, H output width.

Layout. Logically every tensor here is batch first, `[B, E, H]`; in memory it lies as its product left it. Experts that
read the same `[B, D]` are one large product with the `[E * H, D]` weights, so the input is never repeated, its
gradient is summed inside the product, and the result is a contiguous `[B, E, H]`. Experts that read inputs of their
own are one batched product, whose result `[E, B, H]` is handed on as a transposed view. Both feed the next batched
product, or a gate's, as they are: no copy.

A weight is `[E, H, D]`, so `weight[e]` is what `torch.nn.Linear` would keep for expert e.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlrec.layers.mlp import check_hidden, check_positive


def batched_linear(x: Tensor, weight_EHD: Tensor, bias_EH: Tensor) -> Tensor:
    """E linear maps at once: `x` is `[B, D]` (read by all) or `[B, E, D]` (one input each) -> `[B, E, H]`."""
    if x.dim() == 2:
        return F.linear(x, weight_EHD.flatten(0, 1), bias_EH.flatten()).view(x.shape[0], *bias_EH.shape)
    y_EBH = torch.baddbmm(bias_EH.unsqueeze(1), x.transpose(0, 1), weight_EHD.transpose(1, 2))
    return y_EBH.transpose(0, 1)


def check_input(owner: str, x: Tensor, input_dim: int, num_slots: int | None) -> None:
    """Raise ValueError unless `x` is `[B, input_dim]` or, where there are slots, `[B, num_slots, input_dim]`."""
    is_shared = x.dim() == 2 and x.shape[1] == input_dim
    is_slotted = x.dim() == 3 and x.shape[1] == num_slots and x.shape[2] == input_dim
    if not (is_shared or is_slotted):
        wanted = f"[B, {input_dim}]" + (f" or [B, {num_slots}, {input_dim}]" if num_slots is not None else "")
        raise ValueError(f"{owner} takes an input of shape {wanted}, got {list(x.shape)}")


class BatchedLinear(nn.Module):
    """`num` linear maps with weights of their own, each initialised as `torch.nn.Linear` is.

    Args:
        num: E, how many maps.
        input_dim: D.
        output_dim: H.

    Attributes:
        weight, bias: `[E, H, D]` and `[E, H]`.

    Shapes: `[B, D]` (read by all) or `[B, E, D]` (one input each) -> `[B, E, H]`.

    Raises:
        ValueError: for a size below 1.

    Example:
        >>> import torch
        >>> BatchedLinear(3, 8, 4)(torch.randn(2, 8)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, num: int, input_dim: int, output_dim: int) -> None:
        super().__init__()
        check_positive(num=num, input_dim=input_dim, output_dim=output_dim)
        self.weight = nn.Parameter(torch.empty(num, output_dim, input_dim))
        self.bias = nn.Parameter(torch.empty(num, output_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/sqrt(D), 1/sqrt(D)), the distribution of `torch.nn.Linear`'s default."""
        # Not torch.nn.init.kaiming_uniform_: on a stacked weight it would take H * D for the fan in.
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return batched_linear(x, self.weight, self.bias)


class ExpertBank(nn.Module):
    """E expert MLPs (Linear + ReLU for every width, the last included) computed by batched products.

    Args:
        num_experts: E.
        input_dim: D, the width every expert reads.
        hidden: widths of every expert's layers; at least one.
        experts_per_slot: for an input of slots, how many experts read slot 0, slot 1, ...: experts are ordered by
            slot and the counts add up to E. By default a slot per expert.

    Attributes:
        output_dim: H, the last width of `hidden`.
        num_slots: S.

    Shapes: `[B, D]` (all experts read the same) or `[B, S, D]` -> `[B, E, H]` (not necessarily contiguous).

    Raises:
        ValueError: for a size below 1, an empty `hidden`, counts that do not add up to E, or an input of another shape.

    Example:
        >>> import torch
        >>> bank = ExpertBank(3, 8, [16, 4], experts_per_slot=[2, 1])
        >>> bank(torch.randn(5, 8)).shape, bank(torch.randn(5, 2, 8)).shape
        (torch.Size([5, 3, 4]), torch.Size([5, 3, 4]))
    """

    def __init__(
        self, num_experts: int, input_dim: int, hidden: Sequence[int], experts_per_slot: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, input_dim=input_dim)
        widths = (input_dim, *check_hidden(hidden))
        if len(widths) == 1:
            raise ValueError("hidden must have at least one width: an expert without a layer has nothing to learn")
        self.num_experts = num_experts
        self.input_dim = input_dim
        self.output_dim = widths[-1]
        self.experts_per_slot = tuple(experts_per_slot) if experts_per_slot is not None else (1,) * num_experts
        if min(self.experts_per_slot, default=0) < 1 or sum(self.experts_per_slot) != num_experts:
            raise ValueError(
                f"experts_per_slot must be counts of at least 1 that add up to num_experts={num_experts}, "
                f"got {list(self.experts_per_slot)}"
            )
        self.num_slots = len(self.experts_per_slot)
        self.layers = nn.ModuleList(BatchedLinear(num_experts, fan_in, fan_out) for fan_in, fan_out in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        check_input("ExpertBank", x, self.input_dim, self.num_slots)
        h = self._slot_of_each_expert(x) if x.dim() == 3 else x
        for layer in self.layers:
            h = F.relu(layer(h))
        return h

    def _slot_of_each_expert(self, x_BSD: Tensor) -> Tensor:
        """`[B, S, D] -> [B, E, D]`: a slot as often as it has experts; the input itself where every slot has one."""
        if self.num_slots == self.num_experts:
            return x_BSD
        # cat of expanded views, not index_select: its gradient is a sum, not an atomic index_add.
        slots = zip(x_BSD.unbind(1), self.experts_per_slot, strict=True)
        return torch.cat([x_BD.expand(count, -1, -1) for x_BD, count in slots]).transpose(0, 1)
