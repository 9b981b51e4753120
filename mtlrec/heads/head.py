"""What every head has: the task graph, and the shift of logits trained on down-sampled negatives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mtlrec.heads.funnel import HeadOutput, sampling_shift, topological_order


class Head(nn.Module):
    """A fusion's outputs `[B, T, H]` -> `HeadOutput`. `conditional` says that a task's loss is taken on p(k | parent).

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        sampling_rates: the share of each task's negatives that training sees; 1 for all where None

    Raises:
        ValueError: where the edges form a cycle.
    """

    conditional = False
    shift: Tensor

    def __init__(
        self, tasks: Sequence[str], parents: Sequence[int | None], sampling_rates: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.order, self.parents = topological_order(parents), list(parents)
        self.register_buffer("shift", sampling_shift(sampling_rates, len(tasks)), persistent=False)

    def as_sampled(self, logits: Tensor) -> Tensor:
        """[B, T]: in training the logits among the rows that were kept, whose loss is taken; else the true ones."""
        return logits + self.shift if self.training else logits

    def over_impressions(self, logits: Tensor) -> HeadOutput:
        """Of logits [B, T] that are each task's own over all impressions, whatever its parent's."""
        as_sampled = self.as_sampled(logits)
        return HeadOutput(logits, logsigmoid(as_sampled), logsigmoid(-as_sampled), logsigmoid(logits))
