"""PLE: experts of each task's own beside shared ones, level by level (Tang et al., Progressive Layered Extraction
(PLE), RecSys 2020). One level is the paper's CGC.

Shapes: B batch, D input width, T tasks, S = T + 1 slots (a task each, the shared module last), E experts of a level,
H output width.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from mtlrec.layers.experts import ExpertBank
from mtlrec.layers.fusion import FusionLayer
from mtlrec.layers.gates import GateBank
from mtlrec.layers.mlp import check_positive


class PLE(FusionLayer):
    """Levels in which task t mixes its own and the shared experts, and the shared module mixes all.

    Experts are ordered task 0's, ..., task T-1's, shared; each reads its module's slot. A gate's selector is its
    module's slot at that level; the gates' outputs are the next level's slots. The last level has no shared gate:
    nothing would read it.

    Args:
        input_dim: D.
        num_tasks: T.
        num_task_experts: experts of each task, in every level: one number, or one per task.
        num_shared_experts: experts of the shared module, in every level.
        expert_hidden: one inner list per level: the widths of every expert in it.

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

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        num_task_experts: int | Sequence[int],
        num_shared_experts: int,
        expert_hidden: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks + 1)
        check_positive(num_shared_experts=num_shared_experts)
        self.experts_per_slot = (*task_expert_counts(num_task_experts, num_tasks), num_shared_experts)
        num_experts = sum(self.experts_per_slot)
        self.experts = nn.ModuleList(
            ExpertBank(num_experts, dim, hidden, self.experts_per_slot) for dim, hidden in self.levels()
        )
        visible = self._visible_experts()
        visible_by_level = [visible] * (len(self.expert_hidden) - 1) + [visible[:-1]]
        self.gates = nn.ModuleList(
            GateBank(len(seen), num_experts, dim, visible=seen)
            for seen, (dim, _) in zip(visible_by_level, self.levels(), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        slots = x
        for experts, gates in zip(self.experts, self.gates, strict=True):
            selector = slots if slots.dim() == 2 else slots[:, : gates.num_gates]
            slots = torch.bmm(gates(selector), experts(slots))
        return slots

    def _visible_experts(self) -> list[list[int]]:
        """Which experts each gate mixes: a task's its own and the shared ones, in that order; the shared gate all."""
        ends = list(accumulate(self.experts_per_slot))
        owned = [list(range(end - count, end)) for end, count in zip(ends, self.experts_per_slot, strict=True)]
        return [own + owned[-1] for own in owned[:-1]] + [list(range(ends[-1]))]


def task_expert_counts(num_task_experts: int | Sequence[int], num_tasks: int) -> tuple[int, ...]:
    """One count per task from one number or a list of them; ValueError if one is below 1 or there are not T."""
    counts = (num_task_experts,) * num_tasks if isinstance(num_task_experts, int) else tuple(num_task_experts)
    if len(counts) != num_tasks or min(counts) < 1:
        raise ValueError(
            f"num_task_experts must be a number of at least 1, or one such number for each of the {num_tasks} tasks; "
            f"got {num_task_experts!r}"
        )
    return counts
