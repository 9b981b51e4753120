"""AdaTT: every task borrows from every expert, and a residual keeps it close to its own (Li et al., AdaTT: Adaptive
Task-to-Task Fusion Network for Multitask Learning in Recommendations, KDD 2023).

Shapes: B batch, D input width, T tasks, S slots (a task each and, in `AdaTT`, the shared module last), E experts of a
level, H output width.
"""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from mtlrec.layers.blocks.arguments import Dropout, Levels, Size
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import GatedLevel, NativeResidual
from mtlrec.layers.blocks.mlp import check_positive
from mtlrec.layers.fusions.gated import GatedFusion, SharedModuleFusion


class AdaTTSp(GatedFusion):
    """Levels in which every task mixes the experts of all tasks and adds its own.

    Experts are ordered task 0's, ..., task T-1's; expert and gate of task t read slot t. A task's output is the
    gate-weighted sum over all experts plus the native residual over its own; it is the task's slot in the next level.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert in it.
        num_task_experts: m, the experts of each task in every level.
        native_residual: False leaves the residual out (the paper's ablation).
        gate_dropout: the chance that training hides an expert from a gate; see `GateBank`.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` (all tasks read the same) or `[B, T, D]` -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, or an input of another shape.

    Example:
        >>> import torch
        >>> layer = AdaTTSp(8, num_tasks=2, num_task_experts=2, expert_hidden=[[16], [6]])
        >>> layer(torch.randn(5, 8)).shape, layer(torch.randn(5, 2, 8)).shape
        (torch.Size([5, 2, 6]), torch.Size([5, 2, 6]))
    """

    takes_slots = True

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        num_task_experts: Size = 1,
        native_residual: bool = True,
        gate_dropout: Dropout = 0.0,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks)
        check_positive(num_task_experts=num_task_experts)
        experts_per_task = (num_task_experts,) * num_tasks
        num_experts = sum(experts_per_task)
        owners = [task for task in range(num_tasks) for _ in range(num_task_experts)]
        self.expert_owners = [owners] * len(self.expert_hidden)
        self.gate_owners = [range(num_tasks)] * len(self.expert_hidden)
        is_learned = num_task_experts > 1
        self.levels = nn.ModuleList(
            GatedLevel(
                ExpertBank(num_experts, dim, hidden, experts_per_task, **options),
                GateBank(num_tasks, num_experts, dim, dropout=gate_dropout),
                NativeResidual(experts_per_task, num_tasks, is_learned) if native_residual else None,
            )
            for dim, hidden in self.level_dims()
        )


class AdaTT(SharedModuleFusion):
    """AdaTT with a shared module beside the tasks': experts of its own and, below the last level, a gate and a slot.

    Experts are ordered task 0's, ..., task T-1's, shared; experts and gate of a module read its slot. A module's output
    is the gate-weighted sum over all experts plus the native residual over its own. In the last level the shared
    module only supplies experts. The residual's weights are learned, or all 1 where every module has one expert.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert in it.
        num_task_experts: experts of each task, in every level: one number, or one per task.
        num_shared_experts: experts of the shared module, in every level.
        native_residual: False leaves the residual out (the paper's ablation).
        gate_dropout: the chance that training hides an expert from a gate; see `GateBank`.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` (all modules read the same) or `[B, T + 1, D]` (the shared module's last) -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, a list of expert counts that is not T long, no level, an empty level, or an
            input of another shape.

    Example:
        >>> import torch
        >>> layer = AdaTT(8, num_tasks=2, num_task_experts=[1, 2], num_shared_experts=1, expert_hidden=[[16], [6]])
        >>> layer(torch.randn(5, 8)).shape, layer(torch.randn(5, 3, 8)).shape
        (torch.Size([5, 2, 6]), torch.Size([5, 2, 6]))
    """

    takes_slots = True

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        num_task_experts: Size | Sequence[Size] = 1,
        num_shared_experts: Size = 1,
        native_residual: bool = True,
        gate_dropout: Dropout = 0.0,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_task_experts, num_shared_experts)
        num_experts = sum(self.experts_per_slot)
        is_learned = any(count != 1 for count in self.experts_per_slot)
        self.levels = nn.ModuleList(
            GatedLevel(
                ExpertBank(num_experts, dim, hidden, self.experts_per_slot, **options),
                GateBank(len(gates), num_experts, dim, dropout=gate_dropout),
                NativeResidual(self.experts_per_slot, len(gates), is_learned) if native_residual else None,
            )
            for (dim, hidden), gates in zip(self.level_dims(), self.gate_owners, strict=True)
        )
