"""One small MLP per task, ending in one number.

The towers are kept by task name, so that a job with one task more can take the others' weights; behind a prefix,
because a `ModuleDict` has no room for a task called `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.mlp import MLP


class Towers(nn.Module):
    """[B, T, H] -> [B, T] float32, task t's tower on slot t.

    Args:
        tasks: names, in the order of the slots
        input_dim: H
        hidden: widths of each tower's hidden layers
    """

    def __init__(self, tasks: Sequence[str], input_dim: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.by_task = by_task(tasks, lambda slot: _tower(input_dim, hidden))

    def forward(self, fused: Tensor) -> Tensor:
        """fused [B, T, H]; the towers' outputs [B, T], in float32 under autocast too."""
        outputs = [tower(fused[:, slot]) for slot, tower in enumerate(self.by_task.values())]
        return torch.cat(outputs, dim=1).float()


def by_task(tasks: Sequence[str], make: Callable[[int], nn.Module]) -> nn.ModuleDict:
    """`make(slot)` for every task, behind the prefix that names of parameters have."""
    return nn.ModuleDict({f"task_{task}": make(slot) for slot, task in enumerate(tasks)})


def _tower(input_dim: int, hidden: Sequence[int]) -> nn.Sequential:
    mlp = MLP(input_dim, hidden)
    return nn.Sequential(mlp, nn.Linear(mlp.output_dim, 1))
