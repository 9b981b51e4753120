"""Gates: every one a distribution over the experts of a level, `softmax(Linear(selector))`.

Shapes: B batch, G gates, E experts, D selector width, N how many (gate, expert) pairs are allowed in all.

A gate that may not see every expert (PLE's task gates see their own and the shared ones) has weights only for those it
sees, N rows in all. For the product the rows are laid out on the whole `[G, E]` grid, with a bias of -inf in the
empty cells: their softmax is exactly zero, and one batched product then mixes every gate's experts without copying
any expert's output.
"""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from mtlrec.layers.blocks.axes import Axes, Labels, prefixed
from mtlrec.layers.blocks.experts import ExpertBank
from mtlrec.layers.blocks.linear import batched_linear
from mtlrec.layers.blocks.mlp import check_input, check_positive, check_probability


class GateBank(nn.Module):
    """G gates over one bank of E experts. Its output is the gate weights, so a forward hook on it sees them.

    Args:
        num_gates: G.
        num_experts: E.
        selector_dim: D, the width of what a gate looks at.
        hidden: widths of an MLP of its own before each gate's Linear; empty for none.
        visible: for each gate the experts it may choose from, in the order of its weight rows; by default all.
        dropout: the chance that training hides a (gate, expert) pair from a row; the gate's other weights make up for
            it. Against gates that settle on one expert (Zhao et al., Recommending What Video to Watch Next, RecSys
            2019, who take 0.1). A gate whose every expert would be hidden keeps them all.

    Attributes:
        weight, bias: `[N, D']` and `[N]`, gate by gate (`rows(g)` are gate g's); D' is the last of `hidden`, or D.

    Shapes: selector `[B, D]` (the same for all) or `[B, G, D]` -> `[B, G, E]`; sums to 1 over E, 0 where not visible.

    Raises:
        ValueError: for a size below 1, a gate that sees no expert or one that is not there, or a selector of
            another shape.

    Example:
        >>> import torch
        >>> gates = GateBank(2, 3, 8, visible=[[0, 2], [1, 2]])
        >>> weights = gates(torch.randn(5, 8))
        >>> weights.shape, weights[:, 0, 1].sum().item()
        (torch.Size([5, 2, 3]), 0.0)
    """

    cells: Tensor

    def __init__(
        self,
        num_gates: int,
        num_experts: int,
        selector_dim: int,
        hidden: Sequence[int] = (),
        visible: Sequence[Sequence[int]] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_probability(gate_dropout=dropout)
        check_positive(num_gates=num_gates, num_experts=num_experts, selector_dim=selector_dim)
        everything = tuple(range(num_experts))
        self.num_gates = num_gates
        self.num_experts = num_experts
        self.selector_dim = selector_dim
        self.dropout = dropout
        self.visible = (everything,) * num_gates if visible is None else tuple(tuple(seen) for seen in visible)
        if len(self.visible) != num_gates or not all(_is_choice(seen, num_experts) for seen in self.visible):
            raise ValueError(
                f"visible must give each of the {num_gates} gates at least one of the experts 0..{num_experts - 1}, "
                f"none twice; got {[list(seen) for seen in self.visible]}"
            )
        self.selector = ExpertBank(num_gates, selector_dim, hidden) if hidden else None
        num_rows = sum(len(seen) for seen in self.visible)
        self.weight = nn.Parameter(torch.empty(num_rows, hidden[-1] if hidden else selector_dim))
        self.bias = nn.Parameter(torch.empty(num_rows))
        self._is_full_grid = all(seen == everything for seen in self.visible)
        self.register_buffer("cells", torch.empty(num_rows, dtype=torch.long), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize each gate as `torch.nn.Linear` does, and refill the row index (lost on the meta device)."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        cells = [gate * self.num_experts + expert for gate, seen in enumerate(self.visible) for expert in seen]
        self.cells.copy_(torch.tensor(cells))

    def axes(self, gates: Sequence[Hashable], experts: Sequence[Hashable], columns: Labels) -> Axes:
        """Args: labels of the gates, of the experts they choose from, and of what they look at."""
        rows = [(gates[gate], experts[expert]) for gate, visible in enumerate(self.visible) for expert in visible]
        axes: Axes = {"weight": (rows, columns if self.selector is None else None), "bias": (rows,)}
        if self.selector is not None:
            axes |= prefixed("selector", self.selector.axes(gates, columns))
        return axes

    def rows(self, gate: int) -> slice:
        """Where gate `gate`'s rows lie in `weight` and `bias`."""
        start = sum(len(seen) for seen in self.visible[:gate])
        return slice(start, start + len(self.visible[gate]))

    def forward(self, selector: Tensor) -> Tensor:
        logits_BGE = self.logits(selector)
        if self.training and self.dropout:
            logits_BGE = self._hide_some(logits_BGE)
        return logits_BGE.softmax(dim=-1)

    def logits(self, selector: Tensor) -> Tensor:
        """What the softmax is taken of: `[B, G, E]`, -inf where an expert is not visible."""
        check_input("GateBank", selector, self.selector_dim, self.num_gates)
        if self.selector is not None:
            selector = self.selector(selector)
        return batched_linear(selector, *self._on_grid())

    def _hide_some(self, logits_BGE: Tensor) -> Tensor:
        is_hidden = torch.rand(logits_BGE.shape, device=logits_BGE.device) < self.dropout
        sees_nothing = (is_hidden | logits_BGE.isneginf()).all(dim=-1, keepdim=True)
        return logits_BGE.masked_fill(is_hidden & ~sees_nothing, -math.inf)

    def _on_grid(self) -> tuple[Tensor, Tensor]:
        grid = (self.num_gates, self.num_experts)
        if self._is_full_grid:
            return self.weight.view(*grid, -1), self.bias.view(grid)
        num_cells = self.num_gates * self.num_experts
        weight = self.weight.new_zeros(num_cells, self.weight.shape[1]).index_copy(0, self.cells, self.weight)
        bias = self.bias.new_full((num_cells,), -math.inf).index_copy(0, self.cells, self.bias)
        return weight.view(*grid, -1), bias.view(grid)


def _is_choice(seen: Sequence[int], num_experts: int) -> bool:
    """Whether `seen` is a nonempty choice of different experts."""
    return 0 < len(seen) == len(set(seen)) and min(seen) >= 0 and max(seen) < num_experts
