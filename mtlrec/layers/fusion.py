"""What every fusion layer promises, so that to know one is to know all.

A fusion layer turns what the bottom made of a row into one vector per task. They differ in what the tasks share on
the way.

Shapes: B batch, D input width, T tasks, S slots, H output width (the last width of the last level).
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mtlrec.layers.blocks.mlp import check_hidden, check_input, check_positive, is_list


class FusionLayer(nn.Module):
    """Base of the fusion layers: checks and keeps what they all take, computes nothing.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert MLP in it.
        num_slots: S if the layer also takes `[B, S, D]`, an input per module; None if only `[B, D]`.

    Attributes:
        input_dim, num_tasks, num_slots, output_dim (H), expert_hidden (a copy, in tuples).

    Shapes: `[B, D]` or, with slots, `[B, S, D]` -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, a level without a width, or an input of another shape.

    Example:
        >>> layer = FusionLayer(8, num_tasks=2, expert_hidden=[[16, 4], [6]], num_slots=None)
        >>> layer.output_dim, list(layer.level_dims())
        (6, [(8, (16, 4)), (4, (6,))])
    """

    def __init__(
        self, input_dim: int, num_tasks: int, expert_hidden: Sequence[Sequence[int]], num_slots: int | None
    ) -> None:
        super().__init__()
        check_positive(input_dim=input_dim, num_tasks=num_tasks)
        self.input_dim = input_dim
        self.num_tasks = num_tasks
        self.num_slots = num_slots
        self.expert_hidden = _check_levels(expert_hidden)
        self.output_dim = self.expert_hidden[-1][-1]

    def level_dims(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Each level's input width and the widths of its experts."""
        width = self.input_dim
        for hidden in self.expert_hidden:
            yield width, hidden
            width = hidden[-1]

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError, naming both shapes, for an input this layer does not take."""
        check_input(type(self).__name__, x, self.input_dim, self.num_slots)


def _check_levels(expert_hidden: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
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
