"""Cross-stitch: a network per task, stitched together after every level by a small matrix (Misra et al., Cross-stitch
Networks for Multi-task Learning, CVPR 2016).

Shapes: B batch, D input width, T tasks, H output width.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Levels
from mtlrec.layers.blocks.axes import Axes, Labels, prefixed
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.fusions.fusion import ExpertFusion


class Stitch(nn.Module):
    """`weight[t, s]`, how much of task s's output goes into task t's: 0.9 of its own and 0.1 of the others' at first.

    Args:
        num_tasks: T.

    Example:
        >>> Stitch(3).weight[0].tolist()
        [0.8999999761581421, 0.05000000074505806, 0.05000000074505806]
    """

    no_decay = ("weight",)

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tasks, num_tasks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        num_tasks = len(self.weight)
        with torch.no_grad():
            self.weight.fill_(0.1 / max(1, num_tasks - 1)).fill_diagonal_(0.9 if num_tasks > 1 else 1.0)


class CrossStitch(ExpertFusion):
    """Levels of one expert per task; after each, every task reads a learned mix of all tasks' outputs.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert in it.
        options: see `ExpertOptions`.

    Shapes: `[B, D]` (all tasks read the same) or `[B, T, D]` -> `[B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, or an input of another shape.

    Example:
        >>> import torch
        >>> layer = CrossStitch(8, num_tasks=3, expert_hidden=[[16], [6]])
        >>> layer(torch.randn(5, 8)).shape, layer(torch.randn(5, 3, 8)).shape
        (torch.Size([5, 3, 6]), torch.Size([5, 3, 6]))
    """

    takes_slots = True

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden, num_slots=num_tasks)
        self.experts = nn.ModuleList(ExpertBank(num_tasks, dim, hidden, **options) for dim, hidden in self.level_dims())
        self.stitches = nn.ModuleList(Stitch(num_tasks) for _ in self.expert_hidden)

    def levels(self) -> Iterator[tuple[ExpertBank, Stitch]]:
        """Each level's experts and the stitch after them."""
        return zip(cast(Iterable[ExpertBank], self.experts), cast(Iterable[Stitch], self.stitches), strict=True)

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        axes: Axes = {}
        for i, (experts, _) in enumerate(self.levels()):
            axes |= prefixed(f"experts.{i}", experts.axes(tasks, None if i else columns))
            axes[f"stitches.{i}.weight"] = (tasks, tasks)
        return axes

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        slots = x
        for experts, stitch in self.levels():
            slots = experts.mix(slots, stitch.weight.expand(x.shape[0], -1, -1))
        return slots
