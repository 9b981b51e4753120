"""Entire Space Counterfactual Multi-Task Model (Wang et al., SIGIR 2022): ESMM with a second risk for its children."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mtlrec.heads.esmm import ESMM
from mtlrec.heads.funnel import HeadOutput
from mtlrec.heads.towers import Towers
from mtlrec.layers.blocks.experts import Activation, Norm


class ESCM2(ESMM):
    """What is predicted is ESMM's; `losses.Counterfactual` takes the second risk. Doubly robust, the head also says
    which loss it expects of every child's p(child | parent), by an imputation tower of its own: `HeadOutput.imputed`.

    Args:
        tasks, parents, input_dim, tower_hidden, activation, norm, dropout, sampling_rates: as for `ESMM`
        doubly_robust: whether to have imputation towers

    Shapes: `[B, T, H] -> HeadOutput` of `[B, T]` each, `imputed` of `[B, C]`.

    Raises:
        ValueError: where the edges form a cycle.
    """

    child_slots: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        parents: Sequence[int | None],
        input_dim: int,
        tower_hidden: Sequence[int] = (),
        doubly_robust: bool = False,
        activation: Activation = "relu",
        norm: Norm | None = None,
        dropout: float = 0.0,
        sampling_rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__(tasks, parents, input_dim, tower_hidden, activation, norm, dropout, sampling_rates)
        children = [slot for slot, parent in enumerate(parents) if parent is not None]
        self.register_buffer("child_slots", torch.tensor(children, dtype=torch.int64), persistent=False)
        self.imputations = None
        if doubly_robust and children:
            self.imputations = Towers(len(children), input_dim, tower_hidden, activation, norm, dropout)

    def forward(self, fused: Tensor) -> HeadOutput:
        """fused [B, T, H]."""
        outputs = super().forward(fused)
        if self.imputations is None or not self.training:
            return outputs
        return outputs._replace(imputed=softplus(self.imputations(fused.index_select(1, self.child_slots))))
