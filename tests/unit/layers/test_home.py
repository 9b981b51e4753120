"""HoME against a loop over rows and experts, against a PLE whose experts are tied, and what its tasks may not see."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlrec.layers import PLE, HoME
from mtlrec.layers.blocks.level import GatedLevel

D = 5
EPS = 1e-5  # of torch's norms
HIDDEN = -1e4  # a gate's bias that makes a weight of exactly 0
GROUPS = st.sampled_from([[0], [0, 0, 0], [0, 1], [1, 0], [0, 1, 0], [1, 0, 2, 1]])
LEVELS = st.tuples(*[st.lists(st.integers(2, 4), min_size=1, max_size=2)] * 2).map(list)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x) / np.exp(x).sum())


def randomize(module: nn.Module) -> None:
    """Factors and norms start as constants, which would hide where they are used."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    for name, statistic in module.named_buffers():
        if "running" in name:
            nn.init.uniform_(statistic, 0.5, 1.5)


class Loop:
    """One row through the definition, an expert and a gate at a time, in evaluation mode."""

    def __init__(self, layer: HoME, norm: str | None) -> None:
        self.values = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
        self.norm = norm

    def expert(self, level: int, e: int, num_layers: int, x: np.ndarray) -> np.ndarray:
        x = x * self.feature_gate(level, e, x)
        for k in range(num_layers):
            prefix = f"levels.{level}.experts"
            x = self.values[f"{prefix}.layers.{k}.weight"][e] @ x + self.values[f"{prefix}.layers.{k}.bias"][e]
            if self.norm == "batch":
                own = slice(e * len(x), (e + 1) * len(x))
                mean, variance = (
                    self.values[f"{prefix}.norms.{k}.batch_norm.running_{name}"][own] for name in ("mean", "var")
                )
                x = (x - mean) / np.sqrt(variance + EPS)
            if self.norm == "layer":
                x = (x - x.mean()) / np.sqrt(x.var() + EPS)
            if self.norm:
                x = x * self.values[f"{prefix}.norms.{k}.weight"][e] + self.values[f"{prefix}.norms.{k}.bias"][e]
            x = x * sigmoid(x)
        return x

    def feature_gate(self, level: int, e: int, x: np.ndarray) -> np.ndarray | float:
        prefix = f"feature_gates.{level}"
        if f"{prefix}.down" not in self.values:
            return 1.0
        down, up = self.values[f"{prefix}.down"][e], self.values[f"{prefix}.up"][e]
        choice = softmax(self.values[f"{prefix}.choice.weight"][e] @ x + self.values[f"{prefix}.choice.bias"][e])
        return np.asarray(sum(c * 2 * sigmoid(a @ (b @ x)) for c, a, b in zip(choice, up, down, strict=True)))

    def mix(
        self, level: int, selector: np.ndarray, outputs: list[np.ndarray], seen: list[list[int]], own: list[list[int]]
    ) -> list[np.ndarray]:
        """`selector`: a row for each gate. Gates have a row of weights for each expert that they see, in order."""
        mixed = []
        gate_row = self_row = 0
        for gate, experts in enumerate(seen):
            gates, self_gates = f"levels.{level}.gates", f"levels.{level}.residual.gates"
            rows = slice(gate_row, gate_row := gate_row + len(experts))
            weights = softmax(
                self.values[f"{gates}.weight"][rows] @ selector[gate] + self.values[f"{gates}.bias"][rows]
            )
            total = sum(weight * outputs[e] for weight, e in zip(weights, experts, strict=True))
            if f"{self_gates}.weight" in self.values:
                rows = slice(self_row, self_row := self_row + len(own[gate]))
                logits = self.values[f"{self_gates}.weight"][rows] @ selector[gate]
                logits = logits + self.values[f"{self_gates}.bias"][rows]
                weights = sigmoid(logits) if len(logits) == 1 else softmax(logits)
                total = total + sum(weight * outputs[e] for weight, e in zip(weights, own[gate], strict=True))
            mixed.append(np.asarray(total))
        return mixed


def expert_numbers(counts: list[int]) -> list[list[int]]:
    """For modules with so many experts each, which are theirs."""
    ends = np.cumsum(counts)
    return [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    groups=GROUPS,
    levels=LEVELS,
    shared=st.integers(1, 2),
    per_group=st.integers(1, 2),
    per_task=st.integers(1, 2),
    num_feature_gates=st.integers(0, 6),
    self_gates=st.booleans(),
    norm=st.sampled_from([None, "layer", "batch"]),
)
def test_home_equals_a_loop(
    groups: list[int],
    levels: list[list[int]],
    shared: int,
    per_group: int,
    per_task: int,
    num_feature_gates: int,
    self_gates: bool,
    norm: Any,
) -> None:
    num_tasks, num_groups = len(groups), max(groups) + 1
    counts = [per_task + task % 2 for task in range(num_tasks)]
    layer = HoME(
        D, num_tasks, levels, groups, shared, per_group, counts, num_feature_gates, self_gates, norm=norm
    ).double()
    randomize(layer)
    layer.eval()
    loop, x = Loop(layer, norm), torch.randn(3, D, dtype=torch.float64)
    expected = []
    for row in x.numpy():
        *of_groups, of_shared = own = expert_numbers([per_group] * num_groups + [shared])
        outputs = [loop.expert(0, e, len(levels[0]), row) for e in range(sum(map(len, own)))]
        seen = [[*of_group, *of_shared] for of_group in of_groups] + [list(range(len(outputs)))]
        *z_groups, z_shared = loop.mix(0, np.stack([row] * len(own)), outputs, seen, own)

        own = expert_numbers([*counts, *[per_group] * num_groups, shared])
        reads = [z_groups[group] for group in groups] + z_groups + [z_shared]
        outputs = [loop.expert(1, e, len(levels[1]), read) for read, mine in zip(reads, own, strict=True) for e in mine]
        seen = [[*own[task], *own[num_tasks + group], *own[-1]] for task, group in enumerate(groups)]
        expected.append(loop.mix(1, np.stack(reads[:num_tasks]), outputs, seen, own[:num_tasks]))
    np.testing.assert_allclose(layer(x).detach().numpy(), np.array(expected), atol=1e-9, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(groups=GROUPS, levels=LEVELS, shared=st.integers(1, 2), per_group=st.integers(1, 2), per_task=st.integers(1, 2))
def test_without_its_gates_and_norm_it_is_a_ple_with_tied_experts(
    groups: list[int], levels: list[list[int]], shared: int, per_group: int, per_task: int
) -> None:
    """In that PLE, tasks of one category have copies of its experts beside experts of their own.

    In level 1 no gate looks at the latter, and the shared gate sees one copy for each category. The feature gates are
    left as they start, the identity.
    """
    num_tasks = len(groups)
    home = HoME(
        D, num_tasks, levels, groups, shared, per_group, per_task, self_gates=False, norm=None, activation="relu"
    )
    ple = PLE(D, num_tasks, levels, per_group + per_task, shared)
    home, ple = home.double(), ple.double()
    first_of_group = {group: task for task, group in reversed(list(enumerate(groups)))}

    def source(level: int, task: int | None, k: int) -> int | None:
        """HoME's counterpart of PLE's expert k of a task, or shared; None where it has none."""
        if task is None:
            owner: int | str = "shared"
        elif k < per_group:
            owner = f"group {groups[task]}"
        else:
            owner, k = task, k - per_group
        mine = [e for e, other in enumerate(home.expert_owners[level]) if other == owner]
        return mine[k] if mine else None

    for level, (ours, theirs) in enumerate(zip(home.gated_levels(), ple.gated_levels(), strict=True)):
        owners: list[tuple[int | None, int]] = [
            (task, k) for task in range(num_tasks) for k in range(per_group + per_task)
        ]
        owners += [(None, k) for k in range(shared)]
        sources = [source(level, *owner) for owner in owners]
        copy_experts(ours, theirs, sources)
        for gate in range(theirs.gates.num_gates):
            is_shared_gate = gate == num_tasks
            if level == 0:
                our_gate = len(first_of_group) if is_shared_gate else groups[gate]
            else:
                our_gate = gate
            counted = [
                None if is_shared_gate and task is not None and first_of_group[groups[task]] != task else source_of
                for (task, _), source_of in zip(owners, sources, strict=True)
            ]
            copy_gate(ours, our_gate, theirs, gate, counted)
    x = torch.randn(4, D, dtype=torch.float64)
    torch.testing.assert_close(home(x), ple(x), atol=1e-11, rtol=1e-11)


@torch.no_grad()
def copy_experts(ours: GatedLevel, theirs: GatedLevel, sources: list[int | None]) -> None:
    for layer, other in zip(ours.experts.layers, theirs.experts.layers, strict=True):
        for expert, source in enumerate(sources):
            if source is not None:
                other.weight[expert], other.bias[expert] = layer.weight[source], layer.bias[source]


@torch.no_grad()
def copy_gate(ours: GatedLevel, our_gate: int, theirs: GatedLevel, gate: int, sources: list[int | None]) -> None:
    for row, expert in enumerate(theirs.gates.visible[gate], start=theirs.gates.rows(gate).start):
        source = sources[expert]
        if source is None:
            theirs.gates.bias[row] = HIDDEN
        else:
            our_row = ours.gates.rows(our_gate).start + ours.gates.visible[our_gate].index(source)
            theirs.gates.weight[row], theirs.gates.bias[row] = ours.gates.weight[our_row], ours.gates.bias[our_row]


def home_of_two_categories() -> HoME:
    torch.manual_seed(0)
    layer = HoME(6, 4, [[8], [5]], [0, 0, 1, 1], num_group_experts=2, norm=None)
    randomize(layer)
    return layer


def stacked_by_expert(layer: HoME, level: int) -> list[nn.Parameter]:
    parts = [layer.levels[level].experts, layer.feature_gates[level]]
    return [parameter for part in parts for parameter in part.parameters()]


def test_other_categories_reach_a_task_only_through_what_is_shared() -> None:
    layer, x = home_of_two_categories(), torch.randn(16, 6)
    layer(x)[:, 0].sum().backward()
    for parameter in stacked_by_expert(layer, level=1):
        assert parameter.grad is not None
        for owner, gradient in zip(layer.expert_owners[1], parameter.grad, strict=True):
            assert gradient.ne(0).any() == (owner in (0, "group 0", "shared")), owner

    def from_group_1() -> list[bool]:
        return [
            bool(gradient.ne(0).any())
            for parameter in stacked_by_expert(layer, level=0)
            for owner, gradient in zip(layer.expert_owners[0], _grad(parameter), strict=True)
            if owner == "group 1"
        ]

    assert all(from_group_1())
    layer.zero_grad()
    level_2 = next(reversed(list(layer.gated_levels())))
    with torch.no_grad():
        level_2.gates.bias[level_2.gates.rows(0).stop - 1] = HIDDEN  # of task 0, and the shared expert
    layer(x)[:, 0].sum().backward()
    assert not any(from_group_1())


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_what_a_task_may_not_see_does_not_move_its_output() -> None:
    layer, x = home_of_two_categories(), torch.randn(16, 6)
    before = layer(x)
    with torch.no_grad():
        for parameter in stacked_by_expert(layer, level=1):
            for owner, own in zip(layer.expert_owners[1], parameter, strict=True):
                if owner in (2, "group 1"):
                    own.add_(1)
    after = layer(x)
    assert torch.equal(after[:, :2], before[:, :2])
    assert after[:, 2:].ne(before[:, 2:]).any(dim=(0, 2)).all()


def test_feature_gates_start_as_the_identity() -> None:
    arguments: Any = {"input_dim": D, "num_tasks": 2, "expert_hidden": [[4], [3]], "norm": "layer"}
    gated, plain = HoME(**arguments).double(), HoME(**arguments, num_feature_gates=0).double()
    missing, unexpected = plain.load_state_dict(gated.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("feature_gates.") for name in unexpected)
    x = torch.randn(4, D, dtype=torch.float64)
    torch.testing.assert_close(gated(x), plain(x))


def test_ranks_of_the_feature_gates() -> None:
    shapes = [tuple(gates.down.shape) for gates in HoME(13, 2, [[7], [3]], num_feature_gates=3).feature_gates]
    assert shapes == [(2, 3, 4, 13), (4, 3, 2, 7)]


@pytest.mark.parametrize("task_groups", [[], [0], [0, 0, 0], [0, 2], [1, 1], [-1, 0], [0.0, 1.0], "01", 0])
def test_groups_that_do_not_fit_the_tasks_are_errors(task_groups: Any) -> None:
    with pytest.raises(ValueError, match=r"^task_groups must give a category to each of the 2 tasks"):
        HoME(4, 2, [[3], [3]], task_groups)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert_hidden": [[3]]}, "^expert_hidden must have two levels"),
        ({"expert_hidden": [[3], [3], [3]]}, "^expert_hidden must have two levels"),
        ({"num_feature_gates": -1}, "^num_feature_gates must be 0 or more, got -1"),
        ({"num_group_experts": 0}, "^num_group_experts must be at least 1, got 0"),
    ],
)
def test_arguments_that_make_no_home_are_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HoME(**{"input_dim": 4, "num_tasks": 2, "expert_hidden": [[3], [3]], **arguments})
