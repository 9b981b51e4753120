"""PLE: experts of each task's own beside shared ones, level by level (Tang et al., Progressive Layered Extraction
(PLE), RecSys 2020). One level is the paper's CGC.

Shapes: B batch, D input width, T tasks, S = T + 1 slots (a task each, the shared module last), E experts of a level,
H output width.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Unpack

from torch import nn

from mtlrec.layers.blocks.arguments import Dropout, Levels, Size
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import GatedLevel
from mtlrec.layers.fusions.gated import SharedModuleFusion


class PLE(SharedModuleFusion):
    """Levels in which task t mixes its own and the shared experts, and the shared module mixes all.

    Experts are ordered task 0's, ..., task T-1's, shared; each reads its module's slot. A gate's selector is its
    module's slot at that level; the gates' outputs are the next level's slots. The last level has no shared gate:
    nothing would read it.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert in it.
        num_task_experts: experts of each task, in every level: one number, or one per task.
        num_shared_experts: experts of the shared module, in every level.
        gate_dropout: the chance that training hides an expert from a gate; see `GateBank`.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` (all modules read the same) or `[B, T + 1, D]` (the shared module's last) -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, a list of expert counts that is not T long, no level, an empty level, or an
            input of another shape.

    Example:
        >>> import torch
        >>> layer = PLE(8, num_tasks=2, num_task_experts=[1, 3], num_shared_experts=2, expert_hidden=[[16], [6]])
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
        gate_dropout: Dropout = 0.0,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_task_experts, num_shared_experts)
        num_experts = sum(self.experts_per_slot)
        visible = self._visible_experts()
        visible_by_level = [visible] * (len(self.expert_hidden) - 1) + [visible[:-1]]
        self.levels = nn.ModuleList(
            GatedLevel(
                ExpertBank(num_experts, dim, hidden, self.experts_per_slot, **options),
                GateBank(len(seen), num_experts, dim, visible=seen, dropout=gate_dropout),
            )
            for (dim, hidden), seen in zip(self.level_dims(), visible_by_level, strict=True)
        )

    def _visible_experts(self) -> list[list[int]]:
        """Which experts each gate mixes: a task's its own and the shared ones, in that order; the shared gate all."""
        ends = list(accumulate(self.experts_per_slot))
        owned = [list(range(end - count, end)) for end, count in zip(ends, self.experts_per_slot, strict=True)]
        return [own + owned[-1] for own in owned[:-1]] + [list(range(ends[-1]))]
