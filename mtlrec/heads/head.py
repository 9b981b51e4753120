"""What every head promises: logits along the task graph, loss terms of its own, what it can correct."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mtlrec.heads.funnel import HeadOutput, sampling_shift, topological_order
from mtlrec.layers.blocks.axes import Axes

RowLosses = Callable[[HeadOutput, Tensor], Tensor]
"""(outputs, targets [B, T]) -> the loss of every row [B, T], of each task by its kind."""


class Head(nn.Module):
    """Base of the heads: a fusion's outputs `[B, T, H]` -> `HeadOutput`.

    A subclass takes `tasks`, `parents`, `input_dim` and `sampling_rates` and whatever else a job should be able to
    set: its other arguments are the keys of `model.heads`, with their types, defaults and the descriptions under
    "Args".

    C children: tasks with a parent, in the order of the tasks.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        sampling_rates: the share of each task's negatives that training sees; 1 for all where None

    Attributes:
        conditional: whether a task's loss is taken on p(task | parent), where the parent is 1
        multiplies: whether p(task) is the product of the towers' probabilities along the path from the root
        corrects_parents: whether the negatives of a task with children may be sampled: its children's probabilities
            are then corrected too

    Raises:
        ValueError: where the edges form a cycle.
    """

    conditional = False
    multiplies = False
    corrects_parents = False
    shift: Tensor
    child_slots: Tensor
    parent_slots: Tensor

    def __init__(
        self, tasks: Sequence[str], parents: Sequence[int | None], sampling_rates: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.tasks, self.order, self.parents = list(tasks), topological_order(parents), list(parents)
        self.is_sampled = any(rate != 1 for rate in sampling_rates or ())
        children = [slot for slot, parent in enumerate(parents) if parent is not None]
        followed = [parent for parent in parents if parent is not None]
        self.register_buffer("shift", sampling_shift(sampling_rates, len(tasks)), persistent=False)
        self.register_buffer("child_slots", torch.tensor(children, dtype=torch.int64), persistent=False)
        self.register_buffer("parent_slots", torch.tensor(followed, dtype=torch.int64), persistent=False)

    def as_sampled(self, logits: Tensor) -> Tensor:
        """[B, T]: in training the logits among the rows that were kept, whose loss is taken; else the true ones."""
        return logits + self.shift if self.training and self.is_sampled else logits

    def over_impressions(self, logits: Tensor) -> HeadOutput:
        """Of logits [B, T] that are each task's own over all impressions, whatever its parent's."""
        as_sampled = self.as_sampled(logits)
        log_p = logsigmoid(as_sampled)
        log_entire_p = log_p if as_sampled is logits else logsigmoid(logits)
        return HeadOutput(logits, log_p, logsigmoid(-as_sampled), log_entire_p)

    def add_terms(self, rows: Tensor, outputs: HeadOutput, targets: Tensor, row_losses: RowLosses) -> Tensor:
        """In training: the rows' losses [B, T] with the head's own terms.

        They are then masked, weighted and averaged over the global batch like any other.

        Args:
            rows: [B, T], what `row_losses` gives for the outputs
            targets: [B, T]
        """
        return rows

    def of_children(self, values_BT: Tensor) -> Tensor:
        """[B, C]"""
        return values_BT.index_select(1, self.child_slots)

    def of_parents(self, values_BT: Tensor) -> Tensor:
        """[B, C]: each child's parent's."""
        return values_BT.index_select(1, self.parent_slots)

    def axes(self, tasks: Sequence[Hashable]) -> Axes:
        """What the axes of parameters stand for, so that a warm start moves what two jobs have in common.

        Args:
            tasks: a label for each task
        """
        return {}

    def set_bias(self, values: Sequence[float]) -> None:
        """Start the towers' outputs at about `values` [T]: what a task's loss says of the mean of its labels.

        Raises ValueError for a head that cannot.
        """
        raise ValueError(f"{type(self).__name__} has no bias to set; leave the tasks' prior out")
