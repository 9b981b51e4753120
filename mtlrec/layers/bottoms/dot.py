"""Dot products of all pairs of vectors: DLRM's interaction.

Shapes: B batch, F embedded features, d_i embedding dim of feature i.
"""

from collections.abc import Hashable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Widths
from mtlrec.layers.blocks.axes import Axes, Labels
from mtlrec.layers.blocks.mlp import MLP
from mtlrec.layers.bottoms.bottom import Bottom


class Dot(Bottom):
    """DLRM's interaction (Naumov et al., arXiv 1906.00091): the dot product of every pair of vectors of a row.

    The dense features become one more vector of the embeddings' dim d, by an MLP and a Linear. The products of these
    F + 1 vectors, each pair once and none with itself, follow that vector in the result. Without dense features there
    are F vectors and the result is the products alone.

    Args:
        dense_dim: width of the dense features; 0 for none.
        embedding_dims: the embedding dim of each feature; all must be the same d.
        hidden: widths of the MLP over the dense features, before the Linear to d.

    Shapes: dense `[B, dense_dim]`, embeddings F times `[B, d]` -> `[B, d + F * (F + 1) / 2]`; without dense
    `[B, F * (F - 1) / 2]`. Pairs are ordered (0, 1), (0, 2), ..., (1, 2), ..., vector 0 the dense one if there is one.

    Raises:
        ValueError: as `Bottom`; for unequal embedding dims; when there is no pair; for inputs of other widths.

    Example:
        >>> import torch
        >>> bottom = Dot(3, [4, 4], hidden=[16])
        >>> bottom(torch.randn(2, 3), [torch.randn(2, 4), torch.randn(2, 4)]).shape
        torch.Size([2, 7])
    """

    def __init__(self, dense_dim: int, embedding_dims: Sequence[int], hidden: Widths = (64,)) -> None:
        super().__init__(dense_dim, embedding_dims)
        if len(set(embedding_dims)) > 1:
            raise ValueError(
                f"Dot needs one embedding dim for all features, got {list(embedding_dims)}: "
                "give the tables one dim, or use the concat or cross bottom"
            )
        num_vectors = len(embedding_dims) + (dense_dim > 0)
        if num_vectors < 2:
            raise ValueError("Dot needs two vectors to multiply: two embedded features, or one and dense features")
        embedding_dim = embedding_dims[0]
        self.dense_mlp = MLP(dense_dim, hidden) if dense_dim else None
        self.dense_projection = nn.Linear(self.dense_mlp.output_dim, embedding_dim) if self.dense_mlp else None
        self.output_dim = num_vectors * (num_vectors - 1) // 2 + (embedding_dim if dense_dim else 0)

    def output_columns(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Labels:
        if self.dense_projection is None:
            return list(combinations(features, 2))
        of_dense = [("dense vector", index) for index in range(self.dense_projection.out_features)]
        return [*of_dense, *combinations(["dense vector", *features], 2)]

    def axes(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Axes:
        if self.dense_mlp is None:
            return {}
        first = "dense_mlp.net.0.weight" if self.dense_mlp.net else "dense_projection.weight"
        return {first: (None, dense)}

    def forward(self, dense: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        self.check_input(dense, embeddings)
        if self.dense_mlp is None or self.dense_projection is None:
            return pairwise_dot(torch.stack(tuple(embeddings), dim=1))
        dense_vector = self.dense_projection(self.dense_mlp(dense))
        vectors = torch.stack([dense_vector, *embeddings], dim=1)
        return torch.cat([dense_vector, pairwise_dot(vectors)], dim=1)


def pairwise_dot(vectors: Tensor) -> Tensor:
    """The dot product of every pair of a row's V vectors, none with itself: `[B, V, d] -> [B, V * (V - 1) / 2]`."""
    num_vectors = vectors.shape[1]
    products = torch.bmm(vectors, vectors.transpose(1, 2))
    # Made here rather than kept in a buffer: a model built on the meta device then has nothing to restore.
    row, column = torch.triu_indices(num_vectors, num_vectors, offset=1, device=vectors.device).unbind()
    return products.flatten(1).index_select(1, row * num_vectors + column)
