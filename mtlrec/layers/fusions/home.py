"""HoME: experts of categories of tasks, then of the tasks (Wang et al., HoME: Hierarchy of Multi-Gate Experts for
Multi-Task Learning at Kuaishou, KDD 2025).

Shapes: B batch, D input width of a level, T tasks, C categories, G gates and E experts of a level, L low-rank gates of
an expert, R their rank, H output width.
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from mtlrec.layers.blocks.arguments import Dropout, Levels, Size
from mtlrec.layers.blocks.axes import SHARED, Axes, Labels, Owner, expert_labels, prefixed
from mtlrec.layers.blocks.experts import Activation, ExpertBank, ExpertOptions, Norm
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import GatedLevel, Residual
from mtlrec.layers.blocks.linear import BatchedLinear
from mtlrec.layers.blocks.mlp import check_positive, is_list
from mtlrec.layers.fusions.fusion import task_expert_counts
from mtlrec.layers.fusions.gated import GatedFusion


class HoME(GatedFusion):
    """Two levels: every category of tasks mixes its own and the shared experts, then every task its own and theirs.

    Level 1 has experts of each category, and shared ones. A category's gate mixes its own and the shared experts. The
    shared gate mixes all. Level 2 has experts of each task, of each category, and shared ones. A task's gate mixes its
    own, its category's and the shared experts. Every expert reads its input times a feature gate. A self gate adds a
    module's own experts once more.

    From the paper: the two levels, experts of Linear, batch norm and SiLU, the feature gates, the self gates. Choices
    made here: in level 2 a task's gate, self gate and experts read its category's output of level 1, and nothing else;
    level 1's shared gate mixes the experts of all categories, as PLE's does. Without norm, feature gates and self
    gates, the layer is a PLE in which the tasks of a category have the same experts and gates in level 1.

    Args:
        input_dim: D of level 1.
        num_tasks: T.
        expert_hidden: two inner lists, one per level: the widths of every expert in it.
        task_groups: the category of each task, as a number from 0 on; None puts all tasks into one category.
        num_shared_experts: shared experts, in both levels.
        num_group_experts: experts of each category, in both levels.
        num_task_experts: experts of each task, in level 2: one number, or one per task.
        num_feature_gates: L, how many low-rank gates an expert's feature gate mixes; 0 leaves feature gates out.
        self_gates: False leaves the self gates out.
        gate_dropout: the chance that training hides an expert from a gate; see `GateBank`. Self gates have none.
        activation: of the experts; relu, silu or gelu.
        norm: of the experts; None, layer or batch.
        dropout, recompute: see `ExpertOptions`. To recompute, take another norm than batch.

    Shapes: `[B, D] -> [B, T, H]`.

    Raises:
        ValueError: for sizes below 1, other than two levels, an empty level, `task_groups` that do not number a
            category for every task, a list of expert counts that is not T long, or an input of another shape.

    Example:
        >>> import torch
        >>> layer = HoME(8, num_tasks=3, expert_hidden=[[16], [6]], task_groups=[0, 0, 1])
        >>> layer(torch.randn(5, 8)).shape
        torch.Size([5, 3, 6])
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        expert_hidden: Levels,
        task_groups: Sequence[int] | None = None,
        num_shared_experts: Size = 1,
        num_group_experts: Size = 1,
        num_task_experts: Size | Sequence[Size] = 1,
        num_feature_gates: Annotated[int, Ge(0)] = 2,
        self_gates: bool = True,
        gate_dropout: Dropout = 0.0,
        activation: Activation = "silu",
        norm: Norm | None = "batch",
        dropout: Dropout = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__(input_dim, num_tasks, expert_hidden)
        check_positive(num_shared_experts=num_shared_experts, num_group_experts=num_group_experts)
        task_experts = task_expert_counts(num_task_experts, num_tasks)
        self.task_groups = _check_groups(task_groups, num_tasks)
        if num_feature_gates < 0:
            raise ValueError(f"num_feature_gates must be 0 or more, got {num_feature_gates}")
        if len(self.expert_hidden) != 2:
            raise ValueError(f"expert_hidden must have two levels, such as [[256], [64]]; got {expert_hidden!r}")

        groups: list[Owner] = [f"group {group}" for group in range(max(self.task_groups) + 1)]
        counts: dict[Owner, int] = dict.fromkeys(groups, num_group_experts) | {SHARED: num_shared_experts}
        sees: list[dict[Owner, Collection[Owner]]] = [
            {**{group: (group, SHARED) for group in groups}, SHARED: (*groups, SHARED)},
            {task: (task, groups[group], SHARED) for task, group in enumerate(self.task_groups)},
        ]
        self.expert_owners = [_owners(counts), _owners({**dict(enumerate(task_experts)), **counts})]
        self.gate_owners = [list(gates) for gates in sees]
        self.level_1_outputs = [self._level_1_output(owner) for owner in self.expert_owners[1]]

        options = ExpertOptions(activation=activation, norm=norm, dropout=dropout, recompute=recompute)
        self.levels = nn.ModuleList(
            _level(ExpertBank(len(experts), dim, hidden, **options), experts, gates, self_gates, gate_dropout)
            for (dim, hidden), experts, gates in zip(self.level_dims(), self.expert_owners, sees, strict=True)
        )
        self.feature_gates = nn.ModuleList(
            FeatureGates(len(experts), dim, num_feature_gates)
            for (dim, _), experts in zip(self.level_dims(), self.expert_owners, strict=True)
            if num_feature_gates
        )

    def axes(self, tasks: Sequence[Hashable], columns: Labels) -> Axes:
        axes = super().axes(tasks, columns)
        for i, gates in enumerate(self.feature_gates):
            assert isinstance(gates, FeatureGates)
            experts = expert_labels(self.expert_owners[i], tasks)
            axes |= prefixed(f"feature_gates.{i}", gates.axes(experts, None if i else columns))
        return axes

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        level_1, level_2 = self.gated_levels()
        outputs = level_1(self._gate_features(0, x), selector=x).unbind(1)
        read_BED = torch.stack([outputs[i] for i in self.level_1_outputs], dim=1)
        selector_BTD = torch.stack([outputs[i] for i in self.task_groups], dim=1)
        y_BTH: Tensor = level_2(self._gate_features(1, read_BED), selector=selector_BTD)
        return y_BTH

    def _gate_features(self, level: int, x: Tensor) -> Tensor:
        gated: Tensor = self.feature_gates[level](x) if self.feature_gates else x
        return gated

    def _level_1_output(self, owner: Owner) -> int:
        """Which of level 1's outputs the owner's experts read in level 2."""
        return self.task_groups[owner] if isinstance(owner, int) else self.gate_owners[0].index(owner)


class FeatureGates(nn.Module):
    """An input for each of E experts: `x * sum_l softmax_l(Linear(x)) * 2 * sigmoid(x B_l A_l)`, the sum over L gates.

    B is 0 at first: the gates then are 1 and every expert reads `x`.

    Args:
        num_experts: E.
        input_dim: D.
        num_gates: L. The rank R of each is D / L, rounded down.

    Attributes:
        down, up: B and A of every gate, `[E, L, R, D]` and `[E, L, D, R]`.

    Shapes: `[B, D]` or `[B, E, D]` -> `[B, E, D]`.

    Example:
        >>> x = torch.randn(5, 8)
        >>> y = FeatureGates(3, 8, num_gates=2)(x)
        >>> y.shape, torch.allclose(y[:, 0], x)
        (torch.Size([5, 3, 8]), True)
    """

    def __init__(self, num_experts: int, input_dim: int, num_gates: int) -> None:
        super().__init__()
        rank = max(1, input_dim // num_gates)
        self.down = nn.Parameter(torch.empty(num_experts, num_gates, rank, input_dim))
        self.up = nn.Parameter(torch.empty(num_experts, num_gates, input_dim, rank))
        self.choice = BatchedLinear(num_experts, input_dim, num_gates)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.up.shape[-1])
        nn.init.zeros_(self.down)
        nn.init.uniform_(self.up, -bound, bound)

    def axes(self, experts: Sequence[Hashable], columns: Labels) -> Axes:
        """The rank grows with the columns: the ranks that both jobs have are the first."""
        ranks = range(self.down.shape[2])
        return {
            "down": (experts, None, ranks, columns),
            "up": (experts, None, columns, ranks),
            "choice.weight": (experts, None, columns),
            "choice.bias": (experts, None),
        }

    def forward(self, x: Tensor) -> Tensor:
        x_BED = x.unsqueeze(1) if x.dim() == 2 else x
        low_BELR = torch.einsum("bd,elrd->belr" if x.dim() == 2 else "bed,elrd->belr", x, self.down)
        gates_BELD = torch.einsum("belr,eldr->beld", low_BELR, self.up).sigmoid()
        weights_BEL = 2 * self.choice(x).softmax(dim=-1)  # not 2 * gates, which are D times as many
        return x_BED * torch.einsum("bel,beld->bed", weights_BEL, gates_BELD)


class SelfGates(Residual):
    """Adds each module's own experts to what its gate mixes: by a sigmoid for one expert, by a softmax over several.

    Args:
        own: for each gate its module's experts.
        num_experts: E.
        selector_dim: D, the width of what a gate looks at.

    Shapes: as `Residual`.

    Example:
        >>> self_gates = SelfGates([[0, 1], [2]], num_experts=3, selector_dim=8)
        >>> added = self_gates(torch.zeros(5, 2, 3), torch.randn(5, 8))
        >>> (added[0] > 0).tolist()
        [[True, True, False], [False, False, True]]
    """

    def __init__(self, own: Sequence[Sequence[int]], num_experts: int, selector_dim: int) -> None:
        super().__init__()
        self.gates = GateBank(len(own), num_experts, selector_dim, visible=own)

    def axes(self, gates: Sequence[Hashable], experts: Sequence[Hashable], selector_columns: Labels) -> Axes:
        return prefixed("gates", self.gates.axes(gates, experts, selector_columns))

    def forward(self, gates_BGE: Tensor, selector: Tensor) -> Tensor:
        logits_BGE = self.gates.logits(selector)
        is_single_BG1 = (~logits_BGE.isneginf()).sum(dim=-1, keepdim=True) == 1
        return gates_BGE + torch.where(is_single_BG1, logits_BGE.sigmoid(), logits_BGE.softmax(dim=-1))


def _level(
    bank: ExpertBank,
    experts: Sequence[Owner],
    sees: Mapping[Owner, Collection[Owner]],
    self_gates: bool,
    gate_dropout: float,
) -> GatedLevel:
    """Args: whose the bank's experts are, and for each owner of a gate the owners of the experts that it mixes."""
    visible, own = (
        [[i for i, owner in enumerate(experts) if owner in owners] for owners in owners_by_gate]
        for owners_by_gate in (sees.values(), [(gate,) for gate in sees])
    )
    gates = GateBank(len(sees), len(experts), bank.input_dim, visible=visible, dropout=gate_dropout)
    return GatedLevel(bank, gates, SelfGates(own, len(experts), bank.input_dim) if self_gates else None)


def _owners(counts: Mapping[Owner, int]) -> list[Owner]:
    return [owner for owner, count in counts.items() for _ in range(count)]


def _check_groups(task_groups: Sequence[int] | None, num_tasks: int) -> tuple[int, ...]:
    """A category for each task; ValueError unless there are T and they are numbered 0, 1, ... with none left out."""
    if task_groups is None:
        return (0,) * num_tasks
    are_numbers = is_list(task_groups) and all(hasattr(group, "__index__") for group in task_groups)
    if not are_numbers or len(task_groups) != num_tasks or set(task_groups) != {*range(len(set(task_groups)))}:
        raise ValueError(
            f"task_groups must give a category to each of the {num_tasks} tasks, numbered 0, 1, ... with none left "
            f"out; got {task_groups!r}"
        )
    return tuple(task_groups)
