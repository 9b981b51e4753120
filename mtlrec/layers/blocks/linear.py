"""E linear maps held as one: a level of experts is then a handful of matrix products, not E times as many.

Shapes: B batch, E maps, D input width, H output width. A weight is `[E, H, D]`, so `weight[e]` is what
`torch.nn.Linear` would keep for map e.

Layout. Logically every tensor here is batch first, `[B, E, H]`; in memory it lies as its product left it. Maps that
read the same `[B, D]` are one large product with the `[E * H, D]` weights, so the input is never repeated, its gradient
is summed inside the product, and the result is a contiguous `[B, E, H]`. Maps that read inputs of their own are one
batched product, whose result `[E, B, H]` is handed on as a transposed view. Both feed the next product as they are: no
copy.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlrec.layers.blocks.mlp import check_positive


def batched_linear(x: Tensor, weight_EHD: Tensor, bias_EH: Tensor) -> Tensor:
    """E linear maps at once: `x` is `[B, D]` (read by all) or `[B, E, D]` (one input each) -> `[B, E, H]`."""
    if x.dim() == 2:
        return F.linear(x, weight_EHD.flatten(0, 1), bias_EH.flatten()).view(x.shape[0], *bias_EH.shape)
    y_EBH = torch.baddbmm(bias_EH.unsqueeze(1), x.transpose(0, 1), weight_EHD.transpose(1, 2))
    return y_EBH.transpose(0, 1)


class BatchedLinear(nn.Module):
    """`num` linear maps with weights of their own, each initialized as `torch.nn.Linear` is.

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
