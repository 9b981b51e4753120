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
        self.is_sampled = any(rate != 1 for rate in sampling_rates or ())
        self.register_buffer("shift", sampling_shift(sampling_rates, len(tasks)), persistent=False)

    def as_sampled(self, logits: Tensor) -> Tensor:
        """[B, T]: in training the logits among the rows that were kept, whose loss is taken; else the true ones."""
        return logits + self.shift if self.training and self.is_sampled else logits

    def over_impressions(self, logits: Tensor) -> HeadOutput:
        """Of logits [B, T] that are each task's own over all impressions, whatever its parent's."""
        as_sampled = self.as_sampled(logits)
        log_p = logsigmoid(as_sampled)
        log_entire_p = log_p if as_sampled is logits else logsigmoid(logits)
        return HeadOutput(logits, log_p, logsigmoid(-as_sampled), log_entire_p)

    def set_bias(self, values: Sequence[float]) -> None:
        """Start the towers' outputs at about `values` [T]: what a task's loss says of the mean of its labels."""
        raise NotImplementedError
