"""Single task: a separate MLP per task, nothing shared. The yardstick every gain of sharing is measured against.

Shapes: B batch, D input width, T tasks, H output width.
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Unpack

from torch import Tensor

from mtlrec.layers.blocks.arguments import Levels
from mtlrec.layers.blocks.axes import Axes, Labels, prefixed
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.fusions.fusion import ExpertFusion


class SingleTask(ExpertFusion):
    """T separate MLPs. Levels mean nothing here: each continues the MLP of the one before.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list of widths per level.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` or `[B, T, D]` (an input per task) -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, or an input of another shape.

    Example:
        >>> import torch
        >>> SingleTask(8, num_tasks=3, expert_hidden=[[16, 4]])(torch.randn(5, 8)).shape
        torch.Size([5, 3, 4])
    """

    takes_slots = True

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks)
        self.experts = ExpertBank(num_tasks, input_dim, tuple(chain(*self.expert_hidden)), **options)

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        return prefixed("experts", self.experts.axes(tasks, columns))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        y_BTH: Tensor = self.experts(x)
        return y_BTH
