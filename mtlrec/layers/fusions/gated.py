"""What the fusion layers with gates have in common: levels, and whose each expert and gate is."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Levels, Size
from mtlrec.layers.blocks.axes import SHARED, Axes, Labels, Owner, expert_labels, label_of, prefixed
from mtlrec.layers.blocks.level import GatedLevel
from mtlrec.layers.blocks.mlp import check_positive
from mtlrec.layers.fusions.fusion import ExpertFusion, task_expert_counts


class GatedFusion(ExpertFusion):
    """Base of the fusion layers with gates. Its `forward` is that of the kinds whose modules keep their slots.

    Attributes, which the subclass sets:
        levels: a `GatedLevel` for each inner list of `expert_hidden`.
        expert_owners, gate_owners: for each level, whose each expert and gate is.

    Example:
        >>> GatedFusion(8, num_tasks=2, expert_hidden=[[16], [6]], num_slots=2).output_dim
        6
    """

    levels: nn.ModuleList
    expert_owners: Sequence[Sequence[Owner]]
    gate_owners: Sequence[Sequence[Owner]]
    gates_read_input: ClassVar[bool] = False
    """Whether gates above the first level look at the layer's input, not at their module's slot."""

    def gated_levels(self) -> Iterator[GatedLevel]:
        """The levels, typed."""
        return iter(cast(Iterable[GatedLevel], self.levels))

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        axes: Axes = {}
        for i, level in enumerate(self.gated_levels()):
            gates = [label_of(owner, tasks) for owner in self.gate_owners[i]]
            experts = expert_labels(self.expert_owners[i], tasks)
            selector_columns = columns if i == 0 or self.gates_read_input else None
            axes |= prefixed(f"levels.{i}", level.axes(gates, experts, None if i else columns, selector_columns))
        return axes

    def forward(self, x: Tensor) -> Tensor:
        """Every module's gate looks at its slot; what it makes is the module's slot in the next level."""
        self.check_input(x)
        slots = x
        for level in self.gated_levels():
            is_common = slots.dim() == 2
            # The last level has no gate for a shared module, whose slot is last.
            slots = level(slots, selector=slots if is_common else slots[:, : level.gates.num_gates])
        return slots


class SharedModuleFusion(GatedFusion):
    """Base of the gated layers whose modules are the tasks and, last, one that they share.

    Experts are ordered task 0's, ..., task T-1's, shared; each reads its module's slot. Every module has a gate in
    every level, but the shared one none in the last: nothing would read it.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert in it.
        num_task_experts: experts of each task, in every level: one number, or one per task.
        num_shared_experts: experts of the shared module, in every level.

    Attributes:
        experts_per_slot: [T + 1], how many experts read each slot, in every level.

    Raises:
        ValueError: for sizes below 1, a list of expert counts that is not T long, no level, or an empty level.

    Example:
        >>> SharedModuleFusion(8, 2, [[16], [6]], num_task_experts=[1, 3], num_shared_experts=2).experts_per_slot
        (1, 3, 2)
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        num_task_experts: Size | Sequence[Size],
        num_shared_experts: Size,
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks + 1)
        check_positive(num_shared_experts=num_shared_experts)
        self.experts_per_slot = (*task_expert_counts(num_task_experts, num_tasks), num_shared_experts)
        modules: list[Owner] = [*range(num_tasks), SHARED]
        owners = [module for module, count in zip(modules, self.experts_per_slot, strict=True) for _ in range(count)]
        self.expert_owners = [owners] * len(self.expert_hidden)
        self.gate_owners = [modules] * (len(self.expert_hidden) - 1) + [modules[:-1]]
