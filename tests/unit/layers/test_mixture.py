"""Weighted sums of experts by groups: equal to the plain formula in every gradient, whatever the groups."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlrec.layers import PLE, AdaTT, AdaTTSp, FusionLayer, MMoE
from mtlrec.layers.blocks import mixture as module
from mtlrec.layers.blocks.expert_groups import plan_groups
from mtlrec.layers.blocks.mixture import mix_relu_experts, relu_mixture


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def problem(counts: list[int], has_slots: bool, hidden: list[int], gates: int, batch: int) -> list[Tensor]:
    """x, weights and every layer's weight and bias."""
    num_experts, width = sum(counts), 5
    tensors = [randn(batch, *([len(counts)] if has_slots else []), width), randn(batch, gates, num_experts)]
    for next_width in hidden:
        tensors += [randn(num_experts, next_width, width), randn(num_experts, next_width)]
        width = next_width
    return tensors


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], *args: object) -> list[Tensor]:
    x, weights, *parameters = tensors
    out = function(x, weights, *args[:1], parameters, *args[1:])
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, tensors, cotangent)]


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=5) | st.lists(st.just(1), min_size=1, max_size=6),
    has_slots=st.booleans(),
    hidden=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    gates=st.integers(1, 4),
    batch=st.integers(0, 4),
    experts_in_a_group=st.integers(1, 5),
    recompute=st.booleans(),
)
def test_equals_the_plain_formula(
    counts: list[int],
    has_slots: bool,
    hidden: list[int],
    gates: int,
    batch: int,
    experts_in_a_group: int,
    recompute: bool,
) -> None:
    tensors = problem(counts, has_slots, hidden, gates, batch)
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("GROUP_BYTES", "RECOMPUTED_GROUP_BYTES"):
            patch.setattr(module, limit, experts_in_a_group * max(1, batch) * max(hidden) * 8)
        ours = gradients(mix_relu_experts, tensors, counts, recompute)
    torch.testing.assert_close(ours, gradients(relu_mixture, tensors, counts), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("counts", [[5], [1] * 5, [3, 2]])
@pytest.mark.parametrize("layout", ["contiguous", "expanded", "strided"])
@pytest.mark.parametrize("recompute", [False, True])
def test_equals_the_plain_formula_at_sizes_with_kernels_of_their_own(
    dtype: torch.dtype,
    tolerance: float,
    counts: list[int],
    layout: str,
    recompute: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    for limit in ("GROUP_BYTES", "RECOMPUTED_GROUP_BYTES"):
        monkeypatch.setattr(module, limit, 2 * 300 * 96 * dtype.itemsize)
    has_slots, slots = len(counts) > 1, len(counts)
    x = {
        "contiguous": torch.randn(300, slots, 48, dtype=dtype),
        "expanded": torch.randn(300, 1, 48, dtype=dtype).expand(-1, slots, -1),
        "strided": torch.randn(48, slots, 300, dtype=dtype).permute(2, 1, 0),
    }[layout]
    tensors = [(x if has_slots else x[:, 0]).requires_grad_(), torch.rand(300, 3, 5, dtype=dtype).requires_grad_()]
    for width, next_width in [(48, 96), (96, 32)]:
        tensors += [
            torch.randn(5, next_width, width, dtype=dtype) / width**0.5,
            torch.randn(5, next_width, dtype=dtype),
        ]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    ours, plain = gradients(mix_relu_experts, tensors, counts, recompute), gradients(relu_mixture, tensors, counts)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * b.abs().max().item(), rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(mix_relu_experts(tensors[0], tensors[1], counts, tensors[2:]), ours[0])


def test_backward_may_run_inside_an_autocast_that_forward_did_not() -> None:
    tensors = [t.detach().float().requires_grad_() for t in problem([2, 1], True, [4, 3], gates=2, batch=3)]
    x, weights, *parameters = tensors
    out = mix_relu_experts(x, weights, [2, 1], parameters)
    expected = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(out, tensors, torch.ones_like(out)), expected)


@pytest.mark.parametrize("has_slots", [False, True])
def test_equals_the_plain_formula_at_a_width_that_is_filled_up_with_zeros(has_slots: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3, 131, dtype=torch.float64) if has_slots else torch.randn(200, 131, dtype=torch.float64)
    tensors = [x, torch.rand(200, 2, 5), torch.randn(5, 16, 131), torch.randn(5, 16)]
    tensors = [tensor.double().requires_grad_() for tensor in tensors]
    counts = [2, 2, 1] if has_slots else [5]
    ours, plain = gradients(mix_relu_experts, tensors, counts, False), gradients(relu_mixture, tensors, counts)
    torch.testing.assert_close(ours, plain, atol=1e-11, rtol=1e-11)


def test_a_group_has_experts_for_every_thread_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(1, 6, [3, 3]), (2, 6, [2, 2, 2]), (3, 6, [3, 3]), (16, 6, [3, 3])]
    cases += [(2, 7, [4, 3]), (2, 9, [4, 4, 1]), (2, 10, [4, 4, 2]), (3, 10, [3, 3, 3, 1]), (1, 10, [4, 4, 2])]
    for threads, experts, sizes in cases:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        groups = plan_groups(torch.empty(40, 8), [experts], 64, limit=4 * 40 * 64 * 4)
        assert [group.experts.stop - group.experts.start for group in groups] == sizes


def test_groups_cover_every_expert_once_and_never_mix_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    limit = 400 * 64  # a hundred rows in float32 fill a group
    for rows, sizes in [(100, [1] * 6), (50, [2, 2, 1, 1]), (1, [4, 1, 1])]:
        groups = plan_groups(torch.empty(rows, 3, 80), [4, 1, 1], 64, limit)
        assert [group.experts.stop - group.experts.start for group in groups] == sizes
        assert [e for group in groups for e in range(group.experts.start, group.experts.stop)] == list(range(6))
        assert [group.slots for group in groups if group.is_first_of_slot] == [0, 1, 2]
    for rows, starts in [(40, [0, 2, 4]), (15, [0]), (16, [0, 3])]:  # from twice its width on, two groups at least
        groups = plan_groups(torch.empty(rows, 8 if rows < 40 else 80), [2, 3], 64, limit)
        assert [group.experts.start for group in groups] == starts


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_finite_differences_twice(recompute: bool) -> None:
    torch.manual_seed(0)
    tensors = problem([2, 1], True, [3, 2], gates=2, batch=2)

    def function(x: Tensor, weights: Tensor, *parameters: Tensor) -> Tensor:
        return mix_relu_experts(x, weights, [2, 1], parameters, recompute)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_a_second_derivative_leaves_out_what_needs_none() -> None:
    x, weights, *parameters = problem([3], False, [4], gates=2, batch=3)
    out = mix_relu_experts(x.detach(), weights, [3], parameters)
    (first,) = torch.autograd.grad(out.square().sum(), [parameters[0]], create_graph=True)
    plain = relu_mixture(x.detach(), weights, [3], parameters)
    (expected,) = torch.autograd.grad(plain.square().sum(), [parameters[0]], create_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(first.sum(), [weights]), torch.autograd.grad(expected.sum(), [weights])
    )


def test_a_retained_graph_gives_the_same_gradients_again() -> None:
    tensors = problem([2, 2], False, [4, 3], gates=2, batch=3)
    x, weights, *parameters = tensors
    out = mix_relu_experts(x, weights, [2, 2], parameters).sum()
    first = torch.autograd.grad(out, tensors, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(out, tensors), first, atol=0, rtol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, tensors)


LEVELS = [[96, 32], [16]]
BUILDERS: dict[str, Callable[..., FusionLayer]] = {
    "mmoe": lambda **o: MMoE(48, 2, LEVELS, 8, **o),
    "ple": lambda **o: PLE(48, 2, LEVELS, 3, 2, **o),
    "adatt_sp": lambda **o: AdaTTSp(48, 2, LEVELS, 4, **o),
    "adatt": lambda **o: AdaTT(48, 2, LEVELS, 3, 2, **o),
}


def peak_bytes(layer: FusionLayer, x: Tensor) -> int:
    """The most that forward and backward hold at a time beside what was there before, as the allocator counts."""
    x = x.detach().requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(x).sum().backward()
    return peak_of(profile)


def peak_of(profile: torch.profiler.profile) -> int:
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert changes
    return max(accumulate(changes))


@pytest.mark.parametrize("options", [{}, {"activation": "silu", "norm": "layer"}], ids=str)
@pytest.mark.parametrize("kind", BUILDERS)
def test_recomputing_halves_the_memory(kind: str, options: dict[str, Any]) -> None:
    x = torch.randn(4096, 48)
    kept, again = (peak_bytes(BUILDERS[kind](recompute=recompute, **options), x) for recompute in (False, True))
    assert again < 0.5 * kept


def test_without_gradients_only_outputs_outlive_their_group() -> None:
    layer, x = MMoE(48, 2, [[96, 32]], 64), torch.randn(4096, 48)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        layer(x)
    assert peak_of(profile) < 1.6 * 64 * 4096 * 32 * 4  # an eighth of all hidden activations beside the outputs


@pytest.mark.parametrize("kind", BUILDERS)
def test_recomputing_changes_no_gradient(kind: str) -> None:
    torch.manual_seed(0)
    layer, again = BUILDERS[kind](), BUILDERS[kind](recompute=True)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(16, 48)
    for each in (layer, again):
        each(x).square().sum().backward()
    torch.testing.assert_close(layer(x), again(x))
    for (name, p), (_, q) in zip(layer.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradient_of_relu_reads_16_bit_numbers_by_their_sign(dtype: torch.dtype) -> None:
    """Also where ReLU left the smallest numbers there are, or infinity."""
    tiny = torch.finfo(dtype).smallest_normal
    h = torch.tensor([0.0, tiny, 1e-3, 1.0, torch.inf, 0.0, tiny / 2, 0.0], dtype=dtype)
    grad = torch.tensor([3.0, -2.0, 1.0, torch.inf, -1.0, -torch.inf, 0.5, torch.nan], dtype=dtype)
    assert module._relu_backward(grad, h) is grad
    assert grad.tolist() == torch.tensor([0.0, -2.0, 1.0, torch.inf, -1.0, 0.0, 0.5, 0.0], dtype=dtype).tolist()


@pytest.mark.parametrize("slots", [1, 2, 6])
def test_a_group_is_one_expert_where_products_are_of_16_bit_numbers(slots: int) -> None:
    x = torch.empty(40, slots, 8)
    counts = [6 // slots] * slots
    sizes = {
        dtype: [g.experts.stop - g.experts.start for g in plan_groups(x.to(dtype), counts, 64, limit=2**30)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert sizes[torch.bfloat16] == [1] * 6
    assert len(sizes[torch.float32]) < 6
