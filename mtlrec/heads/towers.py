"""One small MLP per task, ending in one number: the towers of all tasks as one bank.

B batch, T tasks, H width of a fusion output, W width of a tower's last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Dropout
from mtlrec.layers.blocks.axes import Axes, prefixed
from mtlrec.layers.blocks.experts import Activation, ExpertBank, Norm
from mtlrec.layers.blocks.linear import BatchedLinear


class TowerOptions(TypedDict, total=False):
    """What every head takes for the hidden layers of its towers. Such a layer is Linear, norm, activation, dropout.

    Keys:
        activation: relu, silu or gelu (exact)
        norm: layer, over a tower's width; batch, over the rows a rank sees; or none
        dropout: the share of a layer's outputs that training sets to zero
    """

    activation: Activation
    norm: Norm | None
    dropout: Dropout


class Towers(nn.Module):
    """[B, T, H] -> [B, T] float32, task t's tower on slot t.

    Args:
        num_tasks: T
        input_dim: H
        hidden: widths of each tower's hidden layers
        activation, norm, dropout: of a hidden layer, as for experts (`layers.ExpertOptions`)
    """

    def __init__(
        self,
        num_tasks: int,
        input_dim: int,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        norm: Norm | None = None,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = hidden_bank(num_tasks, input_dim, hidden, activation, norm, dropout)
        self.logits = TaskLogits(num_tasks, hidden[-1] if hidden else input_dim)

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        return prefixed("hidden", hidden_axes(self.hidden, tasks)) | prefixed("logits", self.logits.axes(tasks))

    def forward(self, fused: Tensor) -> Tensor:
        """fused [B, T, H]; the towers' outputs [B, T], in float32 under autocast too."""
        outputs: Tensor = self.logits(self.hidden(fused))
        return outputs


class TaskLogits(BatchedLinear):
    """A linear map to one number per task: [B, T, W] -> [B, T], in float32 under autocast too."""

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__(num_tasks, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x).squeeze(2)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        return {"weight": (tasks, None, None), "bias": (tasks, None)}

    def set_bias(self, values: Sequence[float]) -> None:
        """Start each task's output at about `values` [T]."""
        with torch.no_grad():
            self.bias.copy_(torch.tensor(list(values)).view_as(self.bias))


def hidden_bank(
    num_tasks: int,
    input_dim: int,
    hidden: Sequence[int],
    activation: Activation = "relu",
    norm: Norm | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """[B, T, H] -> [B, T, W]: the hidden layers of all towers; the identity where there are none."""
    if not hidden:
        return nn.Identity()
    return ExpertBank(num_tasks, input_dim, hidden, activation=activation, norm=norm, dropout=dropout)


def hidden_axes(hidden: nn.Module, tasks: Sequence[Hashable]) -> Axes:
    """Of what `hidden_bank` made."""
    return hidden.axes(tasks, None) if isinstance(hidden, ExpertBank) else {}


def by_task(tasks: Sequence[str], make: Callable[[int], nn.Module]) -> nn.ModuleDict:
    """`make(slot)` for every task, by its name. Behind a prefix: a `ModuleDict` has no room for a task `forward`."""
    return nn.ModuleDict({f"task_{task}": make(slot) for slot, task in enumerate(tasks)})
