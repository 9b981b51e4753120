"""A look inside gated layers: gates, what the residual adds, and the norms of the experts' outputs."""

import pytest
import torch
from torch import nn

from mtlrec.layers import PLE, AdaTT, AdaTTSp, CrossStitch, HoME, MMoE, diagnose
from mtlrec.layers.blocks.level import GatedLevel


def levels(model: nn.Module) -> list[GatedLevel]:
    return [module for module in model.modules() if isinstance(module, GatedLevel)]


def test_gates_weights_and_norms_are_those_of_the_batch() -> None:
    torch.manual_seed(0)
    layer, x = AdaTTSp(6, 2, [[5], [4]], 2), torch.randn(7, 6)
    seen = diagnose(layer, x)

    assert list(seen) == ["levels.0", "levels.1"]
    slots = x
    for level, found in zip(levels(layer), seen.values(), strict=True):
        gates, outputs = level.gates(slots), level.experts(slots)
        own = torch.zeros(2, 4)
        own[0, :2], own[1, 2:] = level.residual.weight.detach().view(2, 2)
        torch.testing.assert_close(found.gates, gates)
        torch.testing.assert_close(found.weights, gates + own)
        torch.testing.assert_close(found.norms, outputs.square().sum(dim=2).sqrt())
        slots = torch.bmm(found.weights, outputs)
    torch.testing.assert_close(layer(x), slots)


def test_weights_hold_what_self_gates_add() -> None:
    torch.manual_seed(0)
    layer, x = HoME(6, 2, [[5], [4]], [0, 1]).eval(), torch.randn(7, 6)
    first, second = diagnose(layer, x).values()
    added = layer.levels[0].residual(torch.zeros(7, 3, 3), x)
    assert added.gt(0).any(0).tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    torch.testing.assert_close(first.weights, first.gates + added)
    own = second.weights - second.gates
    assert own.gt(1e-6).any(0).tolist() == [[True, False, False, False, False], [False, True, False, False, False]]


@pytest.mark.parametrize(
    "layer",
    [
        MMoE(6, 3, [[5], [4]], 4),
        PLE(6, 3, [[5], [4]], 1, 2),
        AdaTT(6, 3, [[4]], 1, 1),
        HoME(6, 3, [[5], [4]], [0, 0, 1]),
    ],
)
def test_every_gated_layer_inside_a_model_without_a_trace(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 6), layer)
    seen = diagnose(model, torch.randn(7, 3))
    assert list(seen) == [f"1.levels.{i}" for i in range(len(levels(layer)))]
    assert all(not found.gates.requires_grad and not found.norms.requires_grad for found in seen.values())
    assert all(not module._forward_hooks for module in model.modules())


def test_the_model_is_left_as_it_was() -> None:
    layer = AdaTTSp(6, 2, [[5], [4]], 2, norm="batch", dropout=0.5, gate_dropout=0.5)
    layer.levels[1].eval()
    modes = {name: module.training for name, module in layer.named_modules()}
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    first, second = (diagnose(layer, torch.ones(7, 6)) for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    assert {name: module.training for name, module in layer.named_modules()} == modes
    torch.testing.assert_close(dict(layer.state_dict()), state, atol=0, rtol=0)


def test_a_layer_without_gates_has_nothing_to_show() -> None:
    assert diagnose(CrossStitch(6, 2, [[4]]), torch.randn(3, 6)) == {}


def test_the_hooks_are_gone_after_an_error() -> None:
    layer = MMoE(6, 2, [[4]], 3)
    with pytest.raises(ValueError, match="takes an input of shape"):
        diagnose(layer, torch.randn(3, 5))
    assert all(not module._forward_hooks for module in layer.modules())
