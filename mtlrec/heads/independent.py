"""Independent towers, in their conditional form (ESMM paper's BASE) or each on the whole space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mtlrec.heads.funnel import HeadOutput, chain, topological_order
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

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each.

    Raises:
        ValueError: where the edges form a cycle.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Sequence[int] = (),
        entire_space: bool = False,
    ) -> None:
        super().__init__()
        topological_order(parents)
        self.parents = list(parents)
        self.conditional = not entire_space
        self.towers = Towers(tasks, input_dim, tower_hidden)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        logits = self.towers(fused)
        log_p, log_not_p = logsigmoid(logits), logsigmoid(-logits)
        log_entire_p = chain(logits, self.parents)[0] if self.conditional else log_p
        return HeadOutput(logits, log_p, log_not_p, log_entire_p)
