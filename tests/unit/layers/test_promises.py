"""What every fusion layer promises: shapes, errors, gradients, autocast, second derivatives, compile and export."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlrec.layers import (
    FUSIONS,
    PLE,
    AdaTT,
    AdaTTSp,
    AsymmetricBottom,
    CrossStitch,
    CustomizedSharing,
    FusionLayer,
    HoME,
    MMoE,
    SharedBottom,
    SingleTask,
)
from mtlrec.layers.adatt_reference import reference_tensors
from mtlrec.layers.blocks.experts import ExpertBank
from tests.support.layers import sizes_of


def home(**options: Any) -> HoME:
    """Its feature gates away from where they start, the identity, so that gradients reach both of their factors."""
    layer = HoME(12, 3, [[16, 8], [6]], [0, 1, 0], 2, 1, [1, 2, 1], **options)
    for gates in layer.feature_gates:
        nn.init.normal_(gates.down, std=0.3)
    return layer


ONE_OF_EACH: list[Callable[[], FusionLayer]] = [
    lambda: SingleTask(12, 3, [[16, 8], [6]]),
    lambda: SharedBottom(12, 3, [[16, 8], [6]]),
    lambda: AsymmetricBottom(12, 3, [[16, 8], [6]]),
    lambda: CrossStitch(12, 3, [[16, 8], [6]]),
    lambda: CustomizedSharing(12, 3, [[16, 8], [6]]),
    lambda: CustomizedSharing(12, 3, [[16, 8], [6]], merge="weight"),
    lambda: MMoE(12, 3, [[16, 8], [6]], 4, gate_hidden=[[7], []]),
    lambda: PLE(12, 3, [[16, 8], [6]], [1, 2, 3], 2),
    lambda: AdaTTSp(12, 3, [[16, 8], [6]], 2),
    lambda: AdaTTSp(12, 3, [[16, 8], [6]], 1, native_residual=False),
    lambda: AdaTT(12, 3, [[16, 8], [6]], [1, 2, 3], 2),
    lambda: AdaTT(12, 3, [[16, 8], [6]], 1, 1),
    lambda: home(norm="layer"),
]
WITH_OPTIONS: list[Callable[[], FusionLayer]] = [
    lambda: PLE(12, 3, [[16, 8], [6]], [1, 2, 3], 2, recompute=True),
    lambda: AdaTT(12, 3, [[16, 8], [6]], [1, 2, 3], 2, activation="silu", norm="layer", recompute=True),
    lambda: SingleTask(12, 3, [[16, 8], [6]], activation="gelu", norm="batch"),
    lambda: home(),
    lambda: home(num_feature_gates=0, self_gates=False, activation="relu", norm=None),
]
one_of_each_with_options = pytest.mark.parametrize("build", ONE_OF_EACH + WITH_OPTIONS)
one_of_each = pytest.mark.parametrize("build", ONE_OF_EACH, ids=lambda build: type(build()).__name__)


@one_of_each
def test_promises_of_every_layer(build: Callable[[], FusionLayer]) -> None:
    layer = build()
    assert (layer.input_dim, layer.num_tasks, layer.output_dim) == (12, 3, 6)
    assert layer(torch.randn(5, 12)).shape == (5, 3, 6)
    assert layer(torch.randn(0, 12)).shape == (0, 3, 6)
    if layer.num_slots is not None:
        assert layer(torch.randn(5, layer.num_slots, 12)).shape == (5, 3, 6)


def test_number_of_slots() -> None:
    assert [build().num_slots for build in ONE_OF_EACH] == [3, None, 3, 3, 4, 4, None, 4, 3, 3, 4, 4, None]


@one_of_each
@pytest.mark.parametrize("shape", [(5, 11), (12,), (5, 3, 11), (5, 7, 12), (5, 1, 3, 12)])
def test_an_input_of_another_shape_is_an_error_that_names_both(
    build: Callable[[], FusionLayer], shape: tuple[int, ...]
) -> None:
    layer = build()
    slots = "" if layer.num_slots is None else rf" or \[B, {layer.num_slots}, 12\]"
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} takes .* \[B, 12\]{slots}, got \[{shape[0]}"):
        layer(torch.randn(shape))


MISTAKES = [
    ("expert_hidden", [], "expert_hidden is empty or has an empty level"),
    ("expert_hidden", [[4], []], "expert_hidden is empty or has an empty level"),
    ("expert_hidden", [4, 4], "expert_hidden is not a list of lists: give one list of widths per level"),
    ("expert_hidden", [[4, 0]], r"every width in expert_hidden\[0\] must be at least 1, got 0"),
    ("input_dim", 0, "input_dim must be at least 1, got 0"),
    ("num_tasks", 0, "num_tasks must be at least 1, got 0"),
    ("num_tasks", 2.0, "num_tasks must be a whole number, got 2.0"),
    ("num_tasks", True, "num_tasks must be a whole number, got True"),
    ("expert_hidden", "64", "expert_hidden is not a list of lists"),
    ("expert_hidden", 64, "expert_hidden is not a list of lists"),
    ("expert_hidden", [["64"]], r"every width in expert_hidden\[0\] must be a whole number, got '64'"),
    ("num_task_experts", 2.0, r"num_task_experts must be a .*number.* got 2.0"),
    ("num_task_experts", "2", r"num_task_experts must be"),
    ("num_experts", 0, "num_experts must be at least 1, got 0"),
    ("num_shared_experts", 0, "num_shared_experts must be at least 1, got 0"),
    ("num_task_experts", 0, r"num_task_experts must be .*at least 1.* got 0"),
]


@pytest.mark.parametrize("kind", FUSIONS.values(), ids=FUSIONS)
def test_sizes_that_make_no_layer_are_errors(kind: type[FusionLayer]) -> None:
    arguments: dict[str, Any] = {"input_dim": 6, "num_tasks": 2, "expert_hidden": [[4]], **sizes_of(kind)}
    for name, value, message in MISTAKES:
        if name in arguments:
            with pytest.raises(ValueError, match=message):
                kind(**{**arguments, name: value})


@pytest.mark.parametrize("kind", [PLE, AdaTT, HoME])
@pytest.mark.parametrize("counts", [[1], [1, 2, 3], [], [1, 0]])
def test_a_list_of_experts_has_one_count_per_task(
    kind: type[PLE] | type[AdaTT] | type[HoME], counts: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"num_task_experts must be a number .* each of the 2 tasks"):
        kind(6, 2, [[4]], num_task_experts=counts)


def test_what_only_one_kind_asks_for() -> None:
    with pytest.raises(ValueError, match="asymmetric sharing needs two tasks or more"):
        AsymmetricBottom(6, 1, [[4]])
    with pytest.raises(ValueError, match="merge must be project or weight, got 'sum'"):
        CustomizedSharing(6, 2, [[4]], merge="sum")  # type: ignore[arg-type]


def test_mmoe_wants_one_gate_mlp_per_level() -> None:
    with pytest.raises(ValueError, match=r"gate_hidden must have one list per level \(2 here"):
        MMoE(6, 2, [[4], [4]], 3, gate_hidden=[[5]])


def test_the_callers_lists_are_left_alone() -> None:
    expert_hidden, task_experts, gate_hidden = [[8, 4], [4]], [1, 2], [[3], []]
    before = copy.deepcopy((expert_hidden, task_experts, gate_hidden))
    layers = [
        SingleTask(6, 2, expert_hidden),
        SharedBottom(6, 2, expert_hidden),
        MMoE(6, 2, expert_hidden, 3, gate_hidden),
        PLE(6, 2, expert_hidden, task_experts, 1),
        AdaTTSp(6, 2, expert_hidden, 2),
        AdaTT(6, 2, expert_hidden, task_experts, 1),
        CrossStitch(6, 2, expert_hidden),
        AsymmetricBottom(6, 2, expert_hidden),
        CustomizedSharing(6, 2, expert_hidden),
        HoME(6, 2, expert_hidden, num_task_experts=task_experts),
    ]
    assert (expert_hidden, task_experts, gate_hidden) == before
    expert_hidden[0].clear()
    assert all(layer.expert_hidden == ((8, 4), (4,)) for layer in layers)


@one_of_each
def test_gradient_reaches_every_parameter_of_every_expert(build: Callable[[], FusionLayer]) -> None:
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(64, 12, requires_grad=True)
    y = layer(x)
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None
    if isinstance(layer, SingleTask | CustomizedSharing | HoME):
        assert all(p.grad is not None for p in layer.parameters())
        # Of a task, an expert, or an expert in a gate.
        parts = {f"{name}[{i}]": p.grad[i] for name, p in layer.named_parameters() for i in range(len(p))}
    else:
        parts = reference_tensors(layer, lambda parameter: parameter.grad)
    unreached = [name for name, gradient in parts.items() if gradient.eq(0).all()]
    assert not unreached


@one_of_each
def test_bfloat16_autocast_stays_near_float32(build: Callable[[], FusionLayer]) -> None:
    torch.manual_seed(0)
    layer, x = build(), torch.randn(512, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), atol=0.05, rtol=0.05)
    expected = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        # As a whole: where a product is near 0, rounding may switch a ReLU.
        assert (parameter.grad - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize("build", [*ONE_OF_EACH, WITH_OPTIONS[0]])
@pytest.mark.parametrize("has_slots", [False, True])
def test_derivatives_of_derivatives_are_those_of_plain_operations(
    build: Callable[[], FusionLayer], has_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates are made from what the experts read, so the graph behind a level's inputs must count once, not twice."""
    torch.manual_seed(0)
    layer = build().double()
    if has_slots and layer.num_slots is None:
        pytest.skip("this kind takes no slots")
    x = torch.randn(5, *([layer.num_slots] if has_slots else []), 12, dtype=torch.float64, requires_grad=True)
    tensors = [x, *layer.parameters()]

    def first_and_second() -> list[Tensor]:
        first = torch.autograd.grad(layer(x).square().sum(), tensors, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in first)
        second = torch.autograd.grad(penalty, tensors, allow_unused=True, materialize_grads=True)
        return [*first, *second]

    plain_first = torch.autograd.grad(layer(x).square().sum(), tensors)
    ours = first_and_second()
    torch.testing.assert_close(ours[: len(tensors)], list(plain_first), atol=1e-10, rtol=1e-10)
    monkeypatch.setattr(ExpertBank, "_go_by_groups", lambda self, x: False)
    torch.testing.assert_close(ours, first_and_second(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("build", ONE_OF_EACH[:-1] + WITH_OPTIONS)  # one HoME with gates takes ten seconds
def test_compiles_without_a_break(build: Callable[[], FusionLayer]) -> None:
    """The whole of forward and backward as one graph, for any batch size; the compiler behind it is torch's affair."""
    torch.manual_seed(0)
    layer = build()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (9, 4):
        x = torch.randn(size, 12)
        expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


@one_of_each_with_options
def test_exports_with_a_dynamic_batch(build: Callable[[], FusionLayer]) -> None:
    layer = build().eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(layer, (torch.randn(4, 12),), dynamic_shapes={"x": {0: batch}}).module()
    for size in (1, 9):
        x = torch.randn(size, 12)
        torch.testing.assert_close(exported(x), layer(x))


@one_of_each
def test_exports_with_slots(build: Callable[[], FusionLayer]) -> None:
    layer = build().eval()
    if layer.num_slots is None:
        pytest.skip("this kind takes no slots")
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(layer, (torch.randn(4, layer.num_slots, 12),), dynamic_shapes=dynamic).module()
    x = torch.randn(9, layer.num_slots, 12)
    torch.testing.assert_close(exported(x), layer(x))
