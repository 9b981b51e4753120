"""AdaTT-sp: experts of each task's own, which every task may borrow, and a residual that keeps a task close to its own
(Li et al., AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in Recommendations, KDD 2023).

Shapes: B batch, D input width, T tasks, m experts of a task, E = T * m experts of a level, H output width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlrec.layers.experts import ExpertBank
from mtlrec.layers.fusion import FusionLayer
from mtlrec.layers.gates import GateBank
from mtlrec.layers.mlp import check_positive


class NativeResidual(nn.Module):
    """Adds a task's own experts to what its gate mixes.

    It adds constants to the gate's weights, so that one product with the experts does both.
    With one expert per task the constant is 1. With more they are `weight`, learned and input-free, drawn from
    U(-sqrt(1/m), sqrt(1/m)).

    Args:
        num_tasks: T.
        num_task_experts: m.

    Shapes: gate weights `[B, T, T * m]` -> the same shape; `weight` `[T, m]`, or None for m = 1.

    Example:
        >>> import torch
        >>> NativeResidual(2, 1)(torch.full((1, 2, 2), 0.5)).tolist()
        [[[1.5, 0.5], [0.5, 1.5]]]
    """

    def __init__(self, num_tasks: int, num_task_experts: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.weight = nn.Parameter(torch.empty(num_tasks, num_task_experts)) if num_task_experts > 1 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        if self.weight is not None:
            bound = math.sqrt(1 / self.weight.shape[1])
            nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, gates_BTE: Tensor) -> Tensor:
        own_TT = torch.eye(self.num_tasks, dtype=gates_BTE.dtype, device=gates_BTE.device)
        if self.weight is None:
            return gates_BTE + own_TT
        return gates_BTE + (own_TT.unsqueeze(2) * self.weight.unsqueeze(1)).flatten(1)


class AdaTTSp(FusionLayer):
    """Levels in which every task mixes the experts of all tasks and adds its own.

    Experts are ordered task 0's, ..., task T-1's; expert and gate of task t read slot t. A task's output is the
    gate-weighted sum over all experts plus the native residual over its own; it is the task's slot in the next level.

    Args:
        input_dim: D.
        num_tasks: T.
        num_task_experts: m, the experts of each task in every level.
        expert_hidden: one inner list per level: the widths of every expert in it.
        native_residual: False leaves the residual out (the paper's ablation).

    Shapes: `[B, D]` (all tasks read the same) or `[B, T, D]` -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, or an input of another shape.

    Example:
        >>> import torch
        >>> layer = AdaTTSp(8, num_tasks=2, num_task_experts=2, expert_hidden=[[16], [6]])
        >>> layer(torch.randn(5, 8)).shape, layer(torch.randn(5, 2, 8)).shape
        (torch.Size([5, 2, 6]), torch.Size([5, 2, 6]))
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        num_task_experts: int,
        expert_hidden: Sequence[Sequence[int]],
        native_residual: bool = True,
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks)
        check_positive(num_task_experts=num_task_experts)
        num_experts = num_tasks * num_task_experts
        experts_per_slot = (num_task_experts,) * num_tasks
        self.experts = nn.ModuleList(
            ExpertBank(num_experts, dim, hidden, experts_per_slot) for dim, hidden in self.levels()
        )
        self.gates = nn.ModuleList(GateBank(num_tasks, num_experts, dim) for dim, _ in self.levels())
        self.residuals = nn.ModuleList(
            NativeResidual(num_tasks, num_task_experts) if native_residual else nn.Identity()
            for _ in self.expert_hidden
        )

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        slots = x
        for experts, gates, residual in zip(self.experts, self.gates, self.residuals, strict=True):
            slots = torch.bmm(residual(gates(slots)), experts(slots))
        return slots
