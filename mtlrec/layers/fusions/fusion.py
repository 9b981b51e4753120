"""What every fusion layer promises, so that to know one is to know all.

A fusion layer turns what the bottom made of a row into one vector per task. They differ in what the tasks share on
the way.

Shapes: B batch, D input width, T tasks, S slots, H output width.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Levels
from mtlrec.layers.blocks.axes import Axes, Labels
from mtlrec.layers.blocks.mlp import check_hidden, check_input, check_positive, is_list


class FusionLayer(nn.Module):
    """Base of the fusion layers: checks and keeps the sizes, computes nothing.

    A subclass takes `input_dim` and `num_tasks` and whatever else a job should be able to set: its other arguments are
    the keys of `model.fusion`, with their types, defaults and the descriptions under "Args".

    Args:
        input_dim: D.
        num_tasks: T.
        output_dim: H.
        num_slots: S if the layer also takes `[B, S, D]`, an input per module; None if only `[B, D]`.

    Attributes:
        takes_slots: a class attribute, whether layers of this kind have slots.

    Shapes: `[B, D]` or, with slots, `[B, S, D]` -> `[B, T, H]`. The first T slots are the tasks'.

    Raises:
        ValueError: for sizes below 1, or an input of another shape.

    Example:
        >>> FusionLayer(8, num_tasks=2, output_dim=6).output_dim
        6
    """

    takes_slots: ClassVar[bool] = False

    def __init__(self, input_dim: int, num_tasks: int, output_dim: int, num_slots: int | None = None) -> None:
        super().__init__()
        check_positive(input_dim=input_dim, num_tasks=num_tasks, output_dim=output_dim)
        self.input_dim = input_dim
        self.num_tasks = num_tasks
        self.output_dim = output_dim
        self.num_slots = num_slots

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        """What the axes of parameters stand for, so that a warm start moves what two jobs have in common.

        Args:
            tasks: a label for each task
            columns: labels of the input's columns
        """
        return {}

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError, naming both shapes, for an input this layer does not take."""
        check_input(type(self).__name__, x, self.input_dim, self.num_slots)


class ExpertFusion(FusionLayer):
    """Base of the fusion layers that are made of levels of experts.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert MLP in it.
        num_slots: see `FusionLayer`.

    Attributes:
        expert_hidden: a copy, in tuples. H is the last width of the last level.

    Raises:
        ValueError: for sizes below 1, no level, or a level without a width.

    Example:
        >>> layer = ExpertFusion(8, num_tasks=2, expert_hidden=[[16, 4], [6]])
        >>> layer.output_dim, list(layer.level_dims())
        (6, [(8, (16, 4)), (4, (6,))])
    """

    def __init__(self, input_dim: int, num_tasks: int, expert_hidden: Levels, num_slots: int | None = None) -> None:
        levels = _check_levels(expert_hidden)
        super().__init__(input_dim, num_tasks, levels[-1][-1], num_slots)
        self.expert_hidden = levels

    def level_dims(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Each level's input width and the widths of its experts."""
        width = self.input_dim
        for hidden in self.expert_hidden:
            yield width, hidden
            width = hidden[-1]


def _check_levels(expert_hidden: Levels) -> tuple[tuple[int, ...], ...]:
    example = "give one list of widths per level, such as [[256, 128], [64]]"
    levels = expert_hidden if isinstance(expert_hidden, Sequence) else [None]
    if not all(map(is_list, levels)):
        raise ValueError(f"expert_hidden is not a list of lists: {example}; got {expert_hidden!r}")
    if len(expert_hidden) == 0 or any(len(hidden) == 0 for hidden in expert_hidden):
        raise ValueError(f"expert_hidden is empty or has an empty level: {example}; got {expert_hidden!r}")
    return tuple(check_hidden(hidden, f"expert_hidden[{level}]") for level, hidden in enumerate(expert_hidden))


def task_expert_counts(num_task_experts: int | Sequence[int], num_tasks: int) -> tuple[int, ...]:
    """One count per task from one number or a list of them; ValueError if one is below 1 or there are not T."""
    if isinstance(num_task_experts, Sequence):
        counts = tuple(num_task_experts)
    else:
        counts = (num_task_experts,) * num_tasks
    are_counts = all(hasattr(count, "__index__") and not isinstance(count, bool) for count in counts)
    if len(counts) != num_tasks or not are_counts or min(counts) < 1:
        raise ValueError(
            f"num_task_experts must be a number of at least 1, or one such number for each of the {num_tasks} tasks; "
            f"got {num_task_experts!r}"
        )
    return counts
