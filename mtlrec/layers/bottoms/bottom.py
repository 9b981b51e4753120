"""What every bottom promises: how the features of a row become the one vector that the fusion layer reads.

All take the dense features as one tensor and the embeddings as a list, one per feature, so that no order of columns can
be taken for granted.

Shapes: B batch, F embedded features, d_i embedding dim of feature i, N width of everything side by side.
"""

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from mtlrec.layers.blocks.axes import Axes, Labels
from mtlrec.layers.blocks.mlp import check_hidden


class Bottom(nn.Module):
    """Base of the bottoms: checks and keeps the widths they all take, computes nothing.

    A subclass takes `dense_dim` and `embedding_dims` and whatever else a job should be able to set: its other arguments
    are the keys of `model.bottom`, with their types, defaults and the descriptions under "Args". It sets `output_dim`.

    Args:
        dense_dim: width of the dense features; 0 for none (`dense` is then `[B, 0]`).
        embedding_dims: the embedding dim of each feature, in the order they are given to `forward`.

    Attributes:
        input_dim: N, the width of everything side by side.
        output_dim: the width of the result.

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

    def input_columns(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> list[Hashable]:
        """A label for each of the N columns, of labels of the dense features and of the embedded ones."""
        pairs = zip(features, self.embedding_dims, strict=True)
        return [*dense, *((feature, index) for feature, dim in pairs for index in range(dim))]

    def output_columns(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Labels:
        """Labels of the result's columns, or None where they have no meaning of their own."""
        return None

    def axes(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Axes:
        """What the axes of parameters stand for, so that a warm start moves what two jobs have in common."""
        return {}

    def check_input(self, dense: Tensor, embeddings: Sequence[Tensor]) -> None:
        """Raise ValueError, naming the shapes, unless the inputs are as wide as was announced."""
        widths = [embedding.shape[-1] for embedding in embeddings]
        if dense.shape[-1] != self.dense_dim or widths != list(self.embedding_dims):
            raise ValueError(
                f"{type(self).__name__} takes dense [B, {self.dense_dim}] and embeddings of dims "
                f"{list(self.embedding_dims)}, got dense {list(dense.shape)} and dims {widths}"
            )
