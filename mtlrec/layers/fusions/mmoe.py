"""MMoE: experts shared by all, a gate per task (Ma et al., Modeling Task Relationships in Multi-task Learning with
Multi-gate Mixture-of-Experts, KDD 2018), and its multi-level form.

Shapes: B batch, D input width, T tasks, E experts per level, G gates of a level, H output width.
"""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Dropout, Levels, Size, Widths
from mtlrec.layers.blocks.axes import Owner
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import GatedLevel
from mtlrec.layers.blocks.mlp import check_positive
from mtlrec.layers.fusions.gated import GatedFusion


class MMoE(GatedFusion):
    """Levels of E experts mixed by gates. One level is the original MMoE.

    The last level has a gate per task; each level below has E gates, gate e making the input of expert e of the next
    level. At every level a gate's selector is the raw input x, through an MLP of the gate's own where `gate_hidden`
    asks for one.

    Args:
        input_dim: D.
        num_tasks: T.
        expert_hidden: one inner list per level: the widths of every expert in it.
        num_experts: E, the experts of every level.
        gate_hidden: one inner list per level: the widths of the MLP before every gate in it, `[]` for none (the
            default).
        gate_dropout: the chance that training hides an expert from a gate; see `GateBank`.
        options: see `ExpertOptions`.

    Shapes: `[B, D] -> [B, T, H]`.

    Raises:
        ValueError: for sizes below 1, no level, an empty level, a `gate_hidden` that is not one list per level, or an
            input of another shape.

    Example:
        >>> import torch
        >>> layer = MMoE(8, num_tasks=2, num_experts=4, expert_hidden=[[16], [6]], gate_hidden=[[4], []])
        >>> layer(torch.randn(5, 8)).shape
        torch.Size([5, 2, 6])
    """

    gates_read_input = True

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        num_experts: Size = 4,
        gate_hidden: Sequence[Widths] | None = None,
        gate_dropout: Dropout = 0.0,
        **options: Unpack[ExpertOptions],
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden)
        check_positive(num_experts=num_experts)
        num_levels = len(self.expert_hidden)
        gate_hidden = ((),) * num_levels if gate_hidden is None else gate_hidden
        if not isinstance(gate_hidden, Sequence) or len(gate_hidden) != num_levels:
            raise ValueError(
                f"gate_hidden must have one list per level ({num_levels} here, [] for no MLP), got {gate_hidden!r}"
            )
        inner_gates: list[Owner] = [f"for expert {index}" for index in range(1, num_experts + 1)]
        self.expert_owners = [["expert"] * num_experts] * num_levels
        self.gate_owners = [inner_gates] * (num_levels - 1) + [list(range(num_tasks))]
        self.levels = nn.ModuleList(
            GatedLevel(
                ExpertBank(num_experts, dim, hidden, **options),
                GateBank(len(gates), num_experts, input_dim, of_gates, dropout=gate_dropout),
            )
            for (dim, hidden), gates, of_gates in zip(self.level_dims(), self.gate_owners, gate_hidden, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        mixed_BGH = x
        for level in self.gated_levels():
            mixed_BGH = level(mixed_BGH, selector=x)
        return mixed_BGH
