"""Shared bottom: one MLP for all tasks (Caruana, Multitask Learning, Machine Learning 28, 1997).

Shapes: B batch, D input width, T tasks, H output width.
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Unpack

from torch import Tensor

from mtlrec.layers.blocks.arguments import Levels
from mtlrec.layers.blocks.axes import SHARED, Axes, Labels, prefixed
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.fusions.fusion import ExpertFusion


class SharedBottom(ExpertFusion):
    """One MLP, its output handed to every task as a view. Levels mean nothing here: each continues the MLP.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list of widths per level.
        options: see `ExpertOptions`.

    Shapes: `[B, D] -> [B, T, H]`, the T outputs one memory: clone before writing into it.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, or an input of another shape.

    Example:
        >>> import torch
        >>> y = SharedBottom(8, num_tasks=3, expert_hidden=[[16, 4]])(torch.randn(5, 8))
        >>> y.shape, torch.equal(y[:, 0], y[:, 2])
        (torch.Size([5, 3, 4]), True)
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden)
        self.experts = ExpertBank(1, input_dim, tuple(chain(*self.expert_hidden)), **options)

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        return prefixed("experts", self.experts.axes([SHARED], columns))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        y_B1H: Tensor = self.experts(x)
        return y_B1H.expand(-1, self.num_tasks, -1)
