"""Concatenation: everything side by side, and an MLP over it.

Shapes: B batch, F embedded features, d_i embedding dim of feature i, N width of everything side by side.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from mtlrec.layers.blocks.arguments import Widths
from mtlrec.layers.blocks.axes import Axes, Labels
from mtlrec.layers.blocks.mlp import MLP
from mtlrec.layers.bottoms.bottom import Bottom


class Concat(Bottom):
    """Everything side by side, then an MLP.

    Args:
        dense_dim: width of the dense features; 0 for none.
        embedding_dims: the embedding dim of each feature.
        hidden: widths of the MLP; empty for none.

    Shapes: dense `[B, dense_dim]`, embeddings F times `[B, d_i]` -> `[B, output_dim]`.

    Raises:
        ValueError: as `Bottom`; for a width below 1; for inputs of other widths.

    Example:
        >>> import torch
        >>> bottom = Concat(3, [4, 8], hidden=[16])
        >>> bottom(torch.randn(2, 3), [torch.randn(2, 4), torch.randn(2, 8)]).shape
        torch.Size([2, 16])
    """

    def __init__(self, dense_dim: int, embedding_dims: Sequence[int], hidden: Widths = ()) -> None:
        super().__init__(dense_dim, embedding_dims)
        self.mlp = MLP(self.input_dim, hidden)
        self.output_dim = self.mlp.output_dim

    def output_columns(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Labels:
        return None if self.mlp.net else self.input_columns(dense, features)

    def axes(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Axes:
        return {"mlp.net.0.weight": (None, self.input_columns(dense, features))} if self.mlp.net else {}

    def forward(self, dense: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        self.check_input(dense, embeddings)
        y: Tensor = self.mlp(torch.cat([dense, *embeddings], dim=-1))
        return y
