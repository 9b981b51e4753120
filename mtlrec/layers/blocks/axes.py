"""What the rows and columns of parameters stand for.

Yesterday's job and today's may differ by a task or a feature. Then parameters that mean the same have other shapes: a
bank is stacked over experts, gates choose among all of them, and whatever reads the bottom's output has a column for
every feature. With a label on every index, the part that both jobs know can be moved from one to the other.

An axis without labels (None) means the same at the same position, in a job of the same widths.
"""

from collections.abc import Hashable, Mapping, Sequence

Labels = Sequence[Hashable] | None
Axes = dict[str, tuple[Labels, ...]]
"""By name of a parameter or saved buffer, the labels of each of its axes. What is missing has no labels."""
Owner = int | str
"""Whose an expert or a gate is: a task's, by its index, or a shared module's, by its name."""
SHARED = "shared"


def prefixed(name: str, axes: Mapping[str, tuple[Labels, ...]]) -> Axes:
    """The axes of a submodule called `name`."""
    return {f"{name}.{parameter}": labels for parameter, labels in axes.items()}


def units(owners: Sequence[Hashable], width: int) -> list[Hashable]:
    """An axis on which `width` outputs of each owner lie one after another; those of another width are others."""
    return [(owner, width, index) for owner in owners for index in range(width)]


def label_of(owner: Owner, tasks: Sequence[Hashable]) -> Hashable:
    """A task's own label, or one that no task can have."""
    return tasks[owner] if isinstance(owner, int) else ("module", owner)


def expert_labels(owners: Sequence[Owner], tasks: Sequence[Hashable]) -> list[Hashable]:
    """A label for each expert: its owner's, and which of the owner's experts it is.

    Example:
        >>> expert_labels([0, 1, 1, "shared"], ["click", "buy"])
        [('click', 0), ('buy', 0), ('buy', 1), (('module', 'shared'), 0)]
    """
    return [(label_of(owner, tasks), owners[:index].count(owner)) for index, owner in enumerate(owners)]
