"""The fusion layers: batched equals a loop over experts.

The loops are written from the definitions and see only the per-expert weights that `to_adatt_reference` names; that
these names are right is what test_golden.py holds.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlrec.layers import (
    PLE,
    AdaTT,
    AdaTTSp,
    AsymmetricBottom,
    CrossStitch,
    CustomizedSharing,
    MMoE,
    SharedBottom,
    SingleTask,
    to_adatt_reference,
)
from mtlrec.layers.blocks.experts import ExpertBank
from mtlrec.layers.blocks.level import NativeResidual

Weights = dict[str, Tensor]
D = 5
LEVELS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2), min_size=1, max_size=3)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    layer = nn.Linear(x.shape[1], len(weights[f"{name}.bias"]), dtype=x.dtype)
    layer.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
    return layer(x)


def mlp(weights: Weights, name: str, hidden: list[int], x: Tensor) -> Tensor:
    for k in range(len(hidden)):
        x = linear(weights, f"{name}.mlp_net.{2 * k}", x).relu()
    return x


def mix(scores: Tensor, outputs: list[Tensor]) -> Tensor:
    return sum((score.unsqueeze(1) * output for score, output in zip(scores.unbind(1), outputs, strict=True)), 0.0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, torch.stack(expected, dim=1), atol=1e-11, rtol=1e-11)


@settings(max_examples=40, deadline=None)
@given(num_tasks=st.integers(1, 8), levels=LEVELS, has_slots=st.booleans())
def test_single_task_equals_a_loop(num_tasks: int, levels: list[list[int]], has_slots: bool) -> None:
    layer = SingleTask(D, num_tasks, levels).double()
    x = randn(4, num_tasks, D) if has_slots else randn(4, D)
    expected = []
    for task in range(num_tasks):
        h = x[:, task] if has_slots else x
        for step in layer.experts.layers:
            h = (h @ step.weight[task].T + step.bias[task]).relu()
        expected.append(h)
    assert_equal(layer(x), expected)


@settings(max_examples=20, deadline=None)
@given(num_tasks=st.integers(1, 8), levels=LEVELS)
def test_shared_bottom_equals_one_mlp_for_all(num_tasks: int, levels: list[list[int]]) -> None:
    layer = SharedBottom(D, num_tasks, levels).double()
    x = randn(4, D)
    expected = mlp(to_adatt_reference(layer), "bottom_projection", [width for level in levels for width in level], x)
    assert_equal(layer(x), [expected] * num_tasks)


def test_shared_bottom_hands_out_views() -> None:
    y = SharedBottom(4, 3, [[2]])(torch.randn(5, 4))
    assert y.stride(1) == 0


@settings(max_examples=40, deadline=None)
@given(num_tasks=st.integers(1, 8), num_experts=st.integers(1, 5), levels=LEVELS, data=st.data())
def test_mmoe_equals_a_loop(num_tasks: int, num_experts: int, levels: list[list[int]], data: st.DataObject) -> None:
    per_level = st.lists(st.lists(st.integers(1, 4), max_size=2), min_size=len(levels), max_size=len(levels))
    gate_hidden = data.draw(st.none() | per_level)
    layer = MMoE(D, num_tasks, levels, num_experts, gate_hidden).double()
    weights, x = to_adatt_reference(layer), randn(4, D)

    inputs = [x] * num_experts
    for level, hidden in enumerate(levels):
        outputs = [mlp(weights, f"experts.{level}.{e}", hidden, inputs[e]) for e in range(num_experts)]
        inputs = []
        for gate in range(num_tasks if level == len(levels) - 1 else num_experts):
            own = gate_hidden[level] if gate_hidden else []
            selector = mlp(weights, f"gates.{level}.{gate}.0", own, x)
            inputs.append(mix(linear(weights, f"gates.{level}.{gate}.1", selector).softmax(1), outputs))
    assert_equal(layer(x), inputs)


@settings(max_examples=40, deadline=None)
@given(
    task_experts=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    shared_experts=st.integers(1, 3),
    levels=LEVELS,
    has_slots=st.booleans(),
)
def test_ple_equals_a_loop(
    task_experts: list[int], shared_experts: int, levels: list[list[int]], has_slots: bool
) -> None:
    num_tasks, owners = len(task_experts), [*task_experts, shared_experts]
    layer = PLE(D, num_tasks, levels, task_experts, shared_experts).double()
    weights, x = to_adatt_reference(layer), randn(4, num_tasks + 1, D) if has_slots else randn(4, D)

    slots = list(x.unbind(1)) if has_slots else [x] * (num_tasks + 1)
    for level, hidden in enumerate(levels):
        outputs: list[list[Tensor]] = []
        for module, count in enumerate(owners):
            first = sum(owners[:module])
            names = [f"experts.{level}.{first + i}" for i in range(count)]
            outputs.append([mlp(weights, name, hidden, slots[module]) for name in names])
        seen = [own + outputs[-1] for own in outputs[:-1]]
        if level < len(levels) - 1:
            seen.append([output for own in outputs for output in own])
        slots = [
            mix(linear(weights, f"gate_weights.{level}.{module}.0", slots[module]).softmax(1), experts)
            for module, experts in enumerate(seen)
        ]
    assert_equal(layer(x), slots)


@settings(max_examples=40, deadline=None)
@given(
    num_tasks=st.integers(1, 8),
    count=st.integers(1, 3),
    levels=LEVELS,
    residual=st.booleans(),
    has_slots=st.booleans(),
)
def test_adatt_sp_equals_a_loop(
    num_tasks: int, count: int, levels: list[list[int]], residual: bool, has_slots: bool
) -> None:
    layer = AdaTTSp(D, num_tasks, levels, count, residual).double()
    weights, x = to_adatt_reference(layer), randn(4, num_tasks, D) if has_slots else randn(4, D)

    slots = list(x.unbind(1)) if has_slots else [x] * num_tasks
    for level, hidden in enumerate(levels):
        names = [f"experts.{level}.{e}" for e in range(num_tasks * count)]
        outputs = [mlp(weights, name, hidden, slots[e // count]) for e, name in enumerate(names)]
        fused = []
        for task, slot in enumerate(slots):
            mixed = mix(linear(weights, f"gate_weights.{level}.{task}.0", slot).softmax(1), outputs)
            own = outputs[task * count : (task + 1) * count]
            if residual and count == 1:
                mixed = mixed + own[0]
            elif residual:
                mixed = mixed + mix(weights[f"self_exp_weights.{level}"][task].expand(4, -1), own)
            fused.append(mixed)
        slots = fused
    assert_equal(layer(x), slots)


@settings(max_examples=60, deadline=None)
@given(
    task_experts=st.lists(st.integers(1, 3), min_size=1, max_size=6) | st.lists(st.just(1), min_size=1, max_size=6),
    shared_experts=st.integers(1, 3),
    levels=LEVELS,
    residual=st.booleans(),
    has_slots=st.booleans(),
)
def test_adatt_equals_a_loop(
    task_experts: list[int], shared_experts: int, levels: list[list[int]], residual: bool, has_slots: bool
) -> None:
    num_tasks, owners = len(task_experts), [*task_experts, shared_experts]
    layer = AdaTT(D, num_tasks, levels, task_experts, shared_experts, residual).double()
    weights, x = to_adatt_reference(layer), randn(4, num_tasks + 1, D) if has_slots else randn(4, D)

    slots = list(x.unbind(1)) if has_slots else [x] * (num_tasks + 1)
    for level, hidden in enumerate(levels):
        outputs: list[list[Tensor]] = []
        for module, count in enumerate(owners):
            first = sum(owners[:module])
            names = [f"experts.{level}.{first + i}" for i in range(count)]
            outputs.append([mlp(weights, name, hidden, slots[module]) for name in names])
        everything = [output for own in outputs for output in own]
        fused = []
        for module in range(num_tasks + (level < len(levels) - 1)):
            gate = linear(weights, f"gate_weights.{level}.{module}.0", slots[module]).softmax(1)
            mixed = mix(gate, everything)
            if residual and max(owners) == 1:
                mixed = mixed + outputs[module][0]
            elif residual:
                mixed = mixed + mix(weights[f"self_exp_weights.{module}"][level].expand(4, -1), outputs[module])
            fused.append(mixed)
        slots = fused
    assert_equal(layer(x), slots)


@settings(max_examples=30, deadline=None)
@given(num_tasks=st.integers(1, 8), levels=LEVELS, has_slots=st.booleans())
def test_cross_stitch_equals_a_loop(num_tasks: int, levels: list[list[int]], has_slots: bool) -> None:
    layer = CrossStitch(D, num_tasks, levels).double()
    weights, x = to_adatt_reference(layer), randn(4, num_tasks, D) if has_slots else randn(4, D)
    slots = list(x.unbind(1)) if has_slots else [x] * num_tasks
    for level, hidden in enumerate(levels):
        outputs = [mlp(weights, f"experts.{level}.{t}", hidden, slot) for t, slot in enumerate(slots)]
        slots = [mix(row.expand(4, -1), outputs) for row in weights[f"stitchs.{level}.weight"]]
    assert_equal(layer(x), slots)


@settings(max_examples=30, deadline=None)
@given(num_tasks=st.integers(2, 8), levels=LEVELS, has_slots=st.booleans())
def test_asymmetric_equals_a_loop(num_tasks: int, levels: list[list[int]], has_slots: bool) -> None:
    layer = AsymmetricBottom(D, num_tasks, levels).double()
    weights, x = to_adatt_reference(layer), randn(4, num_tasks, D) if has_slots else randn(4, D)
    hidden, outputs = [width for level in levels for width in level], []
    for task in range(num_tasks):
        own = mlp(weights, f"task{task + 1}_mlp", hidden, x[:, task] if has_slots else x)
        outputs.append(linear(weights, f"task{task + 1}_proj", torch.cat([own, *outputs], dim=1)) if task else own)
    assert_equal(layer(x), outputs)


def test_asymmetric_tasks_do_not_learn_from_those_after_them() -> None:
    layer = AsymmetricBottom(D, 3, [[4, 3]])
    layer(torch.randn(8, D))[:, 2].sum().backward()
    for parameter in layer.experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad[:2].eq(0).all()
    before, after = layer.projections
    assert before.weight.grad.eq(0).all()
    assert after.weight.grad.ne(0).any()


@settings(max_examples=30, deadline=None)
@given(num_tasks=st.integers(1, 8), levels=LEVELS, has_slots=st.booleans(), projected=st.booleans())
def test_customized_sharing_equals_a_loop(
    num_tasks: int, levels: list[list[int]], has_slots: bool, projected: bool
) -> None:
    layer = CustomizedSharing(D, num_tasks, levels, merge="project" if projected else "weight").double()
    if layer.weights is not None:
        nn.init.normal_(layer.weights.weight)
    x = randn(4, num_tasks + 1, D) if has_slots else randn(4, D)
    shared = expert_alone(layer.experts, num_tasks, x[:, -1] if has_slots else x)
    expected = []
    for task in range(num_tasks):
        own = expert_alone(layer.experts, task, x[:, task] if has_slots else x)
        if layer.weights is not None:
            expected.append(layer.weights.weight[task, 0] * shared + layer.weights.weight[task, 1] * own)
        else:
            joined = torch.cat([shared, own], dim=1)
            expected.append(joined @ layer.projections.weight[task].T + layer.projections.bias[task])
    assert_equal(layer(x), expected)


def expert_alone(bank: ExpertBank, expert: int, x: Tensor) -> Tensor:
    for layer in bank.layers:
        x = (x @ layer.weight[expert].T + layer.bias[expert]).relu()
    return x


def test_adatt_residual_weights_start_within_their_bound() -> None:
    torch.manual_seed(0)
    (level,) = AdaTT(4, 200, [[2]], [5, 1] * 100, 3).gated_levels()
    assert isinstance(level.residual, NativeResidual)
    for first, count in [(0, 5), (1, 1)]:
        drawn = torch.cat([level.residual.weight[level.residual.rows(task)] for task in range(first, 200, 2)])
        assert drawn.abs().max() <= count**-0.5
        assert drawn.abs().max() > 0.95 * count**-0.5
