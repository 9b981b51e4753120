"""Asymmetric sharing: tasks in an order, each reading what the tasks before it made, and teaching them nothing.

Shapes: B batch, D input width, T tasks, H output width.
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Unpack

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Levels
from mtlrec.layers.blocks.axes import Axes, Labels, prefixed, units
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.fusions.fusion import ExpertFusion


class AsymmetricBottom(ExpertFusion):
    """An MLP per task; the first task's output is its MLP's, and task k's is
    `Linear([mlp_k(x), out_1, ..., out_{k-1}])` with the others' outputs detached: its loss does not reach them.

    Levels mean nothing here: each continues the MLPs of the one before.

    Args:
        input_dim: D.
        num_tasks: T, at least 2.
        expert_hidden: one inner list of widths per level.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` (all tasks read the same) or `[B, T, D]` -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, a single task, no level, an empty level, or an input of another shape.

    Example:
        >>> import torch
        >>> AsymmetricBottom(8, num_tasks=3, expert_hidden=[[16, 6]])(torch.randn(5, 8)).shape
        torch.Size([5, 3, 6])
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
        if num_tasks < 2:
            raise ValueError("asymmetric sharing needs two tasks or more: for one, take shared_bottom")
        self.experts = ExpertBank(num_tasks, input_dim, tuple(chain(*self.expert_hidden)), **options)
        widths = [self.output_dim * (task + 1) for task in range(1, num_tasks)]
        self.projections = nn.ModuleList(nn.Linear(width, self.output_dim) for width in widths)

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        """Projections are named by number: behind a task that came in between, none has a counterpart."""
        axes = prefixed("experts", self.experts.axes(tasks, columns))
        for i, task in enumerate(tasks[1:]):
            outputs, inputs = units([task], self.output_dim), units([task, *tasks[: i + 1]], self.output_dim)
            axes |= {f"projections.{i}.weight": (outputs, inputs), f"projections.{i}.bias": (outputs,)}
        return axes

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        first, *others = self.experts(x).unbind(1)
        outputs = [first]
        for own, projection in zip(others, self.projections, strict=True):
            outputs.append(projection(torch.cat([own, *(before.detach() for before in outputs)], dim=1)))
        return torch.stack(outputs, dim=1)
