"""Explicit crosses of features: DCN-V2's cross network.

Shapes: B batch, F embedded features, d_i embedding dim of feature i, N width of everything side by side.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Size
from mtlrec.layers.blocks.axes import Axes, Labels
from mtlrec.layers.blocks.mlp import check_positive
from mtlrec.layers.bottoms.bottom import Bottom


class Cross(Bottom):
    """DCN-V2's cross network (Wang et al., WWW 2021): x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

    x_0 is everything side by side, and `*` elementwise.

    Args:
        dense_dim: width of the dense features; 0 for none.
        embedding_dims: the embedding dim of each feature.
        num_layers: how many crosses, that is the highest degree of the products, less one.
        rank: None for a full `[N, N]` W_l; r for W_l = U V with V `[r, N]` and U `[N, r]`.

    Shapes: dense `[B, dense_dim]`, embeddings F times `[B, d_i]` -> `[B, N]`.

    Raises:
        ValueError: as `Bottom`; for `num_layers` or `rank` below 1; for inputs of other widths.

    Example:
        >>> import torch
        >>> bottom = Cross(3, [4, 8], num_layers=3, rank=2)
        >>> bottom(torch.randn(2, 3), [torch.randn(2, 4), torch.randn(2, 8)]).shape
        torch.Size([2, 15])
    """

    def __init__(
        self, dense_dim: int, embedding_dims: Sequence[int], num_layers: Size = 2, rank: Size | None = None
    ) -> None:
        super().__init__(dense_dim, embedding_dims)
        check_positive(num_layers=num_layers, rank=1 if rank is None else rank)
        self.output_dim = self.input_dim
        self.crosses = nn.ModuleList(_cross_weight(self.input_dim, rank) for _ in range(num_layers))

    def output_columns(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Labels:
        return self.input_columns(dense, features)

    def axes(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Axes:
        columns = self.input_columns(dense, features)
        axes: Axes = {}
        for i, cross in enumerate(self.crosses):
            if isinstance(cross, nn.Linear):
                axes |= {f"crosses.{i}.weight": (columns, columns), f"crosses.{i}.bias": (columns,)}
            else:  # V, then U
                axes[f"crosses.{i}.0.weight"] = (None, columns)
                axes |= {f"crosses.{i}.1.weight": (columns, None), f"crosses.{i}.1.bias": (columns,)}
        return axes

    def forward(self, dense: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        self.check_input(dense, embeddings)
        x0 = torch.cat([dense, *embeddings], dim=-1)
        x = x0
        for cross in self.crosses:
            x = x0 * cross(x) + x
        return x


def _cross_weight(dim: int, rank: int | None) -> nn.Module:
    if rank is None:
        return nn.Linear(dim, dim)
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))
