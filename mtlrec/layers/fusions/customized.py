"""Customized sharing: an expert per task beside a shared one, joined once at the end (the baseline of that name in Tang
et al., Progressive Layered Extraction (PLE), RecSys 2020).

Shapes: B batch, D input width, T tasks, S = T + 1 slots (a task each, the shared expert last), H output width.
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Levels
from mtlrec.layers.blocks.axes import SHARED, Axes, Labels, label_of, prefixed
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.blocks.linear import BatchedLinear
from mtlrec.layers.fusions.fusion import ExpertFusion

Merge = Literal["project", "weight"]


class CustomizedSharing(ExpertFusion):
    """A task's output is made of its own expert's and the shared expert's.

    Levels mean nothing here: each continues the experts of the one before.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list of widths per level.
        merge: project, `Linear([shared, own])` of the task's own; or weight, two learned, input-free numbers per task
            that weigh shared and own, each 0.5 at first.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` (all experts read the same) or `[B, T + 1, D]` (the shared expert's last) -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, another merge, or an input of another shape.

    Example:
        >>> import torch
        >>> CustomizedSharing(8, num_tasks=2, expert_hidden=[[16, 6]])(torch.randn(5, 8)).shape
        torch.Size([5, 2, 6])
    """

    takes_slots = True

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        merge: Merge = "project",
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks + 1)
        if merge not in get_args(Merge):
            raise ValueError(f"merge must be {' or '.join(get_args(Merge))}, got {merge!r}")
        self.experts = ExpertBank(num_tasks + 1, input_dim, tuple(chain(*self.expert_hidden)), **options)
        is_projected = merge == "project"
        self.projections = BatchedLinear(num_tasks, 2 * self.output_dim, self.output_dim) if is_projected else None
        self.weights = None if is_projected else MergeWeights(num_tasks)

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        axes = prefixed("experts", self.experts.axes([*tasks, label_of(SHARED, tasks)], columns))
        if self.weights is not None:
            return axes | {"weights.weight": (tasks, None)}
        return axes | {"projections.weight": (tasks, None, None), "projections.bias": (tasks, None)}

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if self.weights is not None:
            return self.experts.mix(x, self.weights.matrix().expand(x.shape[0], -1, -1))
        assert self.projections is not None
        outputs_BEH = self.experts(x)
        own, shared = outputs_BEH[:, :-1], outputs_BEH[:, -1:].expand(-1, self.num_tasks, -1)
        y_BTH: Tensor = self.projections(torch.cat([shared, own], dim=-1))
        return y_BTH


class MergeWeights(nn.Module):
    """`weight[t]`: of the shared expert and of task t's own.

    Args:
        num_tasks: T.

    Example:
        >>> MergeWeights(2).matrix().tolist()
        [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]
    """

    no_decay = ("weight",)

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)

    def matrix(self) -> Tensor:
        """The weights of all experts in every task's sum, `[T, T + 1]`."""
        shared_T, own_T = self.weight.unbind(1)
        return torch.cat([own_T.diag(), shared_T.unsqueeze(1)], dim=1)
