"""One level of a gated fusion layer: experts, gates that weigh them, and a residual where there is one.

Shapes: B batch, S slots, E experts, G gates, D input width, H output width, N experts with a residual weight.
"""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.axes import Axes, Labels, prefixed
from mtlrec.layers.blocks.experts import ExpertBank
from mtlrec.layers.blocks.gates import GateBank


class Residual(nn.Module):
    """Base of what a level adds to its gates' weights, so that one product with the experts does both.

    Shapes: gate weights `[B, G, E]`, selector `[B, D]` or `[B, G, D]` -> the sum, `[B, G, E]`.

    Example:
        >>> Residual().axes(gates=["click"], experts=["shared"], selector_columns=None)
        {}
    """

    def axes(self, gates: Sequence[Hashable], experts: Sequence[Hashable], selector_columns: Labels) -> Axes:
        """Args: labels of the gates, the experts and what the gates look at."""
        return {}


class NativeResidual(Residual):
    """Adds a module's own experts to what its gate mixes (AdaTT).

    What it adds to the gates' weights are constants. They are 1, or learned and input-free, drawn from
    U(-sqrt(1/m), sqrt(1/m)) for a module of m experts.

    Args:
        experts_per_module: m of every module, in the order of the experts.
        num_gates: G, how many of the modules have a gate (the first G).
        learned: False for the constant 1.

    Shapes: as `Residual`, whatever the selector; `weight` is `[N]`, module by module, or None.

    Example:
        >>> import torch
        >>> gates, selector = torch.full((1, 2, 2), 0.5), torch.randn(1, 8)
        >>> NativeResidual([1, 1], num_gates=2, learned=False)(gates, selector).tolist()
        [[[1.5, 0.5], [0.5, 1.5]]]
    """

    def __init__(self, experts_per_module: Sequence[int], num_gates: int, learned: bool) -> None:
        super().__init__()
        self.experts_per_gate = tuple(experts_per_module[:num_gates])
        self.num_experts = sum(experts_per_module)
        self.weight = nn.Parameter(torch.empty(sum(self.experts_per_gate))) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        if self.weight is not None:
            for gate, count in enumerate(self.experts_per_gate):
                bound = math.sqrt(1 / count)
                nn.init.uniform_(self.weight[self.rows(gate)], -bound, bound)

    def rows(self, gate: int) -> slice:
        """Where the weights of the gate's module lie in `weight`; also its experts among all of them."""
        start = sum(self.experts_per_gate[:gate])
        return slice(start, start + self.experts_per_gate[gate])

    def axes(self, gates: Sequence[Hashable], experts: Sequence[Hashable], selector_columns: Labels) -> Axes:
        return {} if self.weight is None else {"weight": (experts[: len(self.weight)],)}

    def forward(self, gates_BGE: Tensor, selector: Tensor) -> Tensor:
        return gates_BGE + self.matrix(gates_BGE)

    def matrix(self, like: Tensor) -> Tensor:
        """What is added to every row's gates: `[G, E]`, zero where the expert is not the gate's own."""
        num_own = sum(self.experts_per_gate)
        own_N = like.new_ones(num_own) if self.weight is None else self.weight
        blocks = [own_N[self.rows(gate)].unsqueeze(0) for gate in range(len(self.experts_per_gate))]
        return nn.functional.pad(torch.block_diag(*blocks), (0, self.num_experts - num_own))


class GatedLevel(nn.Module):
    """Experts, and gates that mix them: `[B, D] or [B, S, D], selector -> [B, G, H]`.

    A forward hook on `gates` sees their weights; `mtlrec.layers.diagnose` shows more.

    Args:
        experts: the level's experts.
        gates: over as many experts; what they look at is the second argument of `forward`.
        residual: what is added to the gates' weights, or None.

    Example:
        >>> level = GatedLevel(ExpertBank(3, 8, [16, 4]), GateBank(2, 3, 8))
        >>> level(torch.randn(5, 8), selector=torch.randn(5, 8)).shape
        torch.Size([5, 2, 4])
    """

    def __init__(self, experts: ExpertBank, gates: GateBank, residual: Residual | None = None) -> None:
        super().__init__()
        self.experts = experts
        self.gates = gates
        self.residual = residual

    def forward(self, x: Tensor, selector: Tensor) -> Tensor:
        return self.experts.mix(x, self.weigh(self.gates(selector), selector))

    def axes(
        self, gates: Sequence[Hashable], experts: Sequence[Hashable], columns: Labels, selector_columns: Labels
    ) -> Axes:
        """Args: labels of the gates, the experts, what the experts read and what the gates look at."""
        axes = prefixed("experts", self.experts.axes(experts, columns))
        axes |= prefixed("gates", self.gates.axes(gates, experts, selector_columns))
        if self.residual is not None:
            axes |= prefixed("residual", self.residual.axes(gates, experts, selector_columns))
        return axes

    def weigh(self, gates_BGE: Tensor, selector: Tensor) -> Tensor:
        """The weight of every expert in every gate's sum: the gates', and the residual's beside them."""
        weights: Tensor = gates_BGE if self.residual is None else self.residual(gates_BGE, selector)
        return weights
