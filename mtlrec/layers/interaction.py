"""The bottoms: how the dense features and the pooled embeddings of a row become the one vector the fusion layer reads.

`Concat` lays them side by side; `Dot` is DLRM's pairwise products; `Cross` is DCN-V2's explicit crosses. All take the
dense features as one tensor and the embeddings as a list, one per feature, so that no order of columns can be taken
for granted.

Shapes: B batch, F embedded features, d_i embedding dim of feature i, N width of everything side by side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.mlp import MLP, check_hidden, check_positive


class Bottom(nn.Module):
    """Base of the bottoms: checks and keeps the widths they all take, computes nothing.

    Args:
        dense_dim: width of the dense features; 0 for none (`dense` is then `[B, 0]`).
        embedding_dims: the embedding dim of each feature, in the order they are given to `forward`.

    Attributes:
        input_dim: N, the width of everything side by side.
        output_dim: the width of the result, set by the subclass.

    Raises:
        ValueError: for a negative `dense_dim`, an embedding dim below 1, or nothing to read at all.

    Example:
        >>> Bottom(3, [4, 8]).input_dim
        15
    """

    output_dim: int

    def __init__(self, dense_dim: int, embedding_dims: Sequence[int]) -> None:
        super().__init__()
        if dense_dim < 0:
            raise ValueError(f"dense_dim must be 0 or more, got {dense_dim}")
        self.dense_dim = dense_dim
        self.embedding_dims = check_hidden(embedding_dims, "embedding_dims")
        self.input_dim = dense_dim + sum(self.embedding_dims)
        if self.input_dim == 0:
            raise ValueError("a bottom needs something to read: dense_dim above 0 or at least one embedding dim")

    def check_input(self, dense: Tensor, embeddings: Sequence[Tensor]) -> None:
        """Raise ValueError, naming the shapes, unless the inputs are as wide as was announced."""
        widths = [embedding.shape[-1] for embedding in embeddings]
        if dense.shape[-1] != self.dense_dim or widths != list(self.embedding_dims):
            raise ValueError(
                f"{type(self).__name__} takes dense [B, {self.dense_dim}] and embeddings of dims "
                f"{list(self.embedding_dims)}, got dense {list(dense.shape)} and dims {widths}"
            )


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

    def __init__(self, dense_dim: int, embedding_dims: Sequence[int], hidden: Sequence[int] = ()) -> None:
        super().__init__(dense_dim, embedding_dims)
        self.mlp = MLP(self.input_dim, hidden)
        self.output_dim = self.mlp.output_dim

    def forward(self, dense: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        self.check_input(dense, embeddings)
        y: Tensor = self.mlp(torch.cat([dense, *embeddings], dim=-1))
        return y


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

    def __init__(self, dense_dim: int, embedding_dims: Sequence[int], hidden: Sequence[int] = ()) -> None:
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
        self, dense_dim: int, embedding_dims: Sequence[int], num_layers: int = 2, rank: int | None = None
    ) -> None:
        super().__init__(dense_dim, embedding_dims)
        check_positive(num_layers=num_layers, rank=1 if rank is None else rank)
        self.output_dim = self.input_dim
        self.crosses = nn.ModuleList(_cross_weight(self.input_dim, rank) for _ in range(num_layers))

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
