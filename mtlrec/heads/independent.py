"""Independent towers, in their conditional form (ESMM paper's BASE) or each on the whole space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mtlrec.heads.funnel import HeadOutput, chain, sampling_shift, topological_order
from mtlrec.heads.towers import Towers


class Independent(nn.Module):
    """A tower per task that shares nothing with the others.

    Tower k gives p(k | parent) and is trained where the parent is 1 (`conditional`); p(k) over all impressions is the
    product along the path. With `entire_space` tower k gives p(k) itself and is trained on every row.

    Args:
        tasks: names, in the order of the slots
        parents: index of the task each one follows, or None
        input_dim: width of a fusion output
        tower_hidden: widths of each tower's hidden layers
        entire_space: see above
        sampling_rates: the share of each task's negatives that training sees; of tasks without a parent, and with
            `entire_space` without children

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle.
    """

    shift: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Sequence[int] = (),
        entire_space: bool = False,
        sampling_rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        topological_order(parents)
        self.parents = list(parents)
        self.conditional = not entire_space
        self.towers = Towers(tasks, input_dim, tower_hidden)
        self.register_buffer("shift", sampling_shift(sampling_rates, len(tasks)), persistent=False)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        logits = self.towers(fused)
        as_sampled = logits + self.shift if self.training else logits
        log_entire_p = chain(logits, self.parents)[0] if self.conditional else logsigmoid(logits)
        log_p, log_not_p = logsigmoid(as_sampled), logsigmoid(-as_sampled)
        return HeadOutput(logits, log_p, log_not_p, log_entire_p)
