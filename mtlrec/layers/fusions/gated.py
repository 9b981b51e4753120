"""What the fusion layers with gates have in common: levels, and whose each expert and gate is."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from mtlrec.layers.blocks.axes import Axes, Labels, Owner, expert_labels, label_of, prefixed
from mtlrec.layers.blocks.level import GatedLevel
from mtlrec.layers.fusions.fusion import ExpertFusion


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
