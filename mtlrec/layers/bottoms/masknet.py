"""Features multiplied by masks that are made of the row itself: MaskNet.

Shapes: B batch, F embedded features, d_i embedding dim of feature i, N width of everything side by side, A width of the
aggregation, H width of a block's output.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from typing import Annotated, Literal, cast, get_args

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from mtlrec.layers.blocks.arguments import Positive, Size, Widths
from mtlrec.layers.blocks.axes import Axes, Labels, prefixed
from mtlrec.layers.blocks.mlp import MLP, check_positive
from mtlrec.layers.bottoms.bottom import Bottom

Mode = Literal["parallel", "serial"]


class MaskNet(Bottom):
    """MaskNet (Wang, She and Zhang, DLP-KDD 2021): blocks of ReLU(LayerNorm(Linear(mask * input))), then an MLP.

    Every block has a mask of its own, `Linear(ReLU(Linear(everything)))`. Before the first block each embedding is
    normalized by itself. Dense features and embeddings of dim 1 are not: a layer norm of one number is 0.

    Args:
        dense_dim: width of the dense features; 0 for none.
        embedding_dims: the embedding dim of each feature.
        num_blocks: how many blocks there are.
        block_dim: H, the width of every block's output; at least 2, because the layer norm of one output is constant.
        reduction: A / N, the width of a mask's hidden layer as a multiple of the width of everything.
        mode: parallel, every block reads the normalized embeddings and the outputs lie side by side; or serial, a block
            reads the one before.
        hidden: widths of the MLP over the blocks' outputs; empty for none.

    Shapes: dense `[B, dense_dim]`, embeddings F times `[B, d_i]` -> `[B, output_dim]`; without `hidden`, `[B, H]` where
    the blocks are serial and `[B, num_blocks * H]` where they are parallel.

    Raises:
        ValueError: as `Bottom`; for `num_blocks` or a width below 1, a `block_dim` below 2, a `reduction` that is not
            above 0, another mode, or inputs of other widths.

    Example:
        >>> import torch
        >>> bottom = MaskNet(3, [4, 8], num_blocks=2, block_dim=16)
        >>> bottom(torch.randn(2, 3), [torch.randn(2, 4), torch.randn(2, 8)]).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        dense_dim: int,
        embedding_dims: Sequence[int],
        num_blocks: Size = 3,
        block_dim: Annotated[int, Ge(2)] = 64,
        reduction: Positive = 2.0,
        mode: Mode = "parallel",
        hidden: Widths = (),
    ) -> None:
        super().__init__(dense_dim, embedding_dims)
        check_positive(num_blocks=num_blocks, block_dim=block_dim)
        if block_dim == 1:
            raise ValueError("block_dim must be at least 2, got 1: the layer norm of one output is constant")
        if not reduction > 0:
            raise ValueError(f"reduction must be above 0, got {reduction}")
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be {' or '.join(get_args(Mode))}, got {mode!r}")
        self.is_serial = mode == "serial"
        self.embedding_norm = EmbeddingNorm(self.embedding_dims) if self.embedding_dims else None
        self.aggregation_dim = max(1, round(reduction * self.input_dim))
        self.blocks = nn.ModuleList(
            MaskBlock(
                guide_dim=self.input_dim,
                input_dim=block_dim if self.is_serial and i > 0 else self.input_dim,
                output_dim=block_dim,
                aggregation_dim=self.aggregation_dim,
            )
            for i in range(num_blocks)
        )
        self.mlp = MLP(block_dim if self.is_serial else num_blocks * block_dim, hidden)
        self.output_dim = self.mlp.output_dim

    def axes(self, dense: Sequence[Hashable], features: Sequence[Hashable]) -> Axes:
        columns = self.input_columns(dense, features)
        axes: Axes = {}
        if self.embedding_norm is not None:
            axes |= prefixed("embedding_norm", self.embedding_norm.axes(columns[self.dense_dim :]))
        for i, block in enumerate(self._blocks()):
            axes |= prefixed(f"blocks.{i}", block.axes(columns, None if self.is_serial and i > 0 else columns))
        return axes

    def forward(self, dense: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        self.check_input(dense, embeddings)
        everything = torch.cat([dense, *embeddings], dim=-1)
        y: Tensor = self.mlp(self._run_blocks(self._normalize(everything), guide=everything))
        return y

    def _normalize(self, everything: Tensor) -> Tensor:
        if self.embedding_norm is None:
            return everything
        dense, embeddings = everything.tensor_split((self.dense_dim,), dim=-1)
        return torch.cat([dense, self.embedding_norm(embeddings)], dim=-1)

    def _run_blocks(self, x: Tensor, guide: Tensor) -> Tensor:
        if not self.is_serial:
            return torch.cat([block(x, guide) for block in self._blocks()], dim=-1)
        for block in self._blocks():
            x = block(x, guide)
        return x

    def _blocks(self) -> Iterable["MaskBlock"]:
        return cast(Iterable[MaskBlock], self.blocks)


class MaskBlock(nn.Module):
    """`ReLU(LayerNorm(Linear(mask * x)))`, the mask an MLP of `guide`. As in the paper, the Linear has no bias.

    Args:
        guide_dim: N, the width of what the mask is made of.
        input_dim: the width of `x` and of the mask.
        output_dim: H.
        aggregation_dim: A.

    Example:
        >>> MaskBlock(8, 4, 6, aggregation_dim=16)(torch.randn(2, 4), torch.randn(2, 8)).shape
        torch.Size([2, 6])
    """

    def __init__(self, guide_dim: int, input_dim: int, output_dim: int, aggregation_dim: int) -> None:
        super().__init__()
        self.aggregation = nn.Linear(guide_dim, aggregation_dim)
        self.projection = nn.Linear(aggregation_dim, input_dim)
        self.linear = nn.Linear(input_dim, output_dim, bias=False)
        self.norm = nn.LayerNorm(output_dim)

    def axes(self, guide_columns: Labels, input_columns: Labels) -> Axes:
        """The aggregation grows with the columns: the units that both jobs have are its first."""
        units = range(self.aggregation.out_features)
        return {
            "aggregation.weight": (units, guide_columns),
            "aggregation.bias": (units,),
            "projection.weight": (input_columns, units),
            "projection.bias": (input_columns,),
            "linear.weight": (None, input_columns),
        }

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        mask = self.projection(F.relu(self.aggregation(guide)))
        return F.relu(self.norm(self.linear(mask * x)))


class EmbeddingNorm(nn.Module):
    """A layer norm of every feature's embedding by itself; where the dim is 1, only its weight and bias.

    Neighbors of the same dim are normalized by one operator.

    Args:
        embedding_dims: d_i of every feature.

    Shapes: `[B, sum of d_i]` -> the same.

    Example:
        >>> EmbeddingNorm([2, 1])(torch.tensor([[3.0, 1.0, 5.0]])).round().tolist()
        [[1.0, -1.0, 5.0]]
    """

    def __init__(self, embedding_dims: Sequence[int]) -> None:
        super().__init__()
        self.dims_and_counts = [(dim, len(list(run))) for dim, run in groupby(embedding_dims)]
        self.weight = nn.Parameter(torch.empty(sum(embedding_dims)))
        self.bias = nn.Parameter(torch.empty(sum(embedding_dims)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def axes(self, columns: Labels) -> Axes:
        return {"weight": (columns,), "bias": (columns,)}

    def forward(self, embeddings: Tensor) -> Tensor:
        runs = embeddings.split([dim * count for dim, count in self.dims_and_counts], dim=-1)
        normalized = [_normalize(run, dim) for run, (dim, _) in zip(runs, self.dims_and_counts, strict=True)]
        return torch.cat(normalized, dim=-1) * self.weight + self.bias


def _normalize(embeddings: Tensor, dim: int) -> Tensor:
    """Every `dim` columns by themselves."""
    if dim == 1:
        return embeddings
    return F.layer_norm(embeddings.unflatten(-1, (-1, dim)), (dim,)).flatten(-2)
