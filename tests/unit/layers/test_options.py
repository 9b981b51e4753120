"""Options of experts and gates against the torch modules one would write for each expert alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlrec.layers import (
    FUSIONS,
    PLE,
    AdaTT,
    AdaTTSp,
    ExpertBank,
    FusionLayer,
    GateBank,
    HoME,
    MMoE,
)
from mtlrec.layers.blocks import experts as experts_module
from mtlrec.layers.blocks.experts import ExpertNorm
from tests.support.layers import sizes_of

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
GATED = [MMoE, PLE, AdaTTSp, AdaTT, HoME]


def build(kind: type[FusionLayer], **options: Any) -> FusionLayer:
    return kind(**{"input_dim": 6, "num_tasks": 2, "expert_hidden": [[8], [4]], **sizes_of(kind), **options})


def plain_expert(bank: ExpertBank, expert: int) -> nn.Sequential:
    net = nn.Sequential()
    for i, layer in enumerate(bank.layers):
        linear = nn.Linear(layer.weight.shape[2], layer.weight.shape[1])
        linear.weight.data, linear.bias.data = layer.weight.data[expert], layer.bias.data[expert]
        net.append(linear)
        if bank.norms is not None:
            ours = bank.norms[i]
            norm = nn.LayerNorm(linear.out_features) if ours.batch_norm is None else nn.BatchNorm1d(linear.out_features)
            norm.weight.data, norm.bias.data = ours.weight.data[expert], ours.bias.data[expert]
            net.append(norm)
        net.append(ACTIVATIONS[bank.activation]())
    return net.double()


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_slots", [False, True])
def test_an_expert_is_what_torch_would_compute_alone(activation: Any, norm: Any, has_slots: bool) -> None:
    torch.manual_seed(0)
    bank = ExpertBank(3, 6, [5, 4], [2, 1], activation=activation, norm=norm).double()
    for module in bank.modules():
        if isinstance(module, ExpertNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    experts = [plain_expert(bank, e) for e in range(3)]
    x = torch.randn(7, *([2] if has_slots else []), 6, dtype=torch.float64)
    inputs = [x[:, slot] if has_slots else x for slot in (0, 0, 1)]

    def expected() -> Tensor:
        return torch.stack([expert(own) for expert, own in zip(experts, inputs, strict=True)], dim=1)

    weights = torch.randn(7, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(bank(x), expected())  # batch norm: by this batch
    bank.eval()
    for expert in experts:
        expert.eval()
    torch.testing.assert_close(bank(x), expected())  # batch norm: by what it has seen
    torch.testing.assert_close(bank.mix(x, weights), torch.bmm(weights, expected()))


def test_batch_norm_takes_a_single_row_by_what_it_has_seen() -> None:
    torch.manual_seed(0)
    bank = ExpertBank(2, 6, [5, 4], norm="batch")
    bank(torch.randn(50, 6))
    x, before = torch.randn(1, 6), {name: buffer.clone() for name, buffer in bank.named_buffers()}
    in_training = bank(x)
    torch.testing.assert_close(dict(bank.named_buffers()), before, atol=0, rtol=0)
    torch.testing.assert_close(in_training, bank.eval()(x))


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_zeroes_its_share_scales_the_rest_and_rests_in_evaluation(recompute: bool) -> None:
    torch.manual_seed(0)
    bank = ExpertBank(4, 6, [50], activation="gelu", dropout=0.3, recompute=recompute)
    x = torch.randn(200, 6)
    dropped = bank(x)
    full = bank.eval()(x)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(dropped[kept], full[kept] / 0.7)
    assert full.ne(0).all()


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"norm": "layer"}, {"activation": "silu"}], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("has_slots", [False, True])
def test_recomputing_changes_no_gradient_and_draws_the_same_dropout(
    options: dict[str, Any], mixed: bool, has_slots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts_module, "RECOMPUTED_GROUP_BYTES", 9 * 5 * 4)  # an expert at a time
    torch.manual_seed(0)
    bank, again = (ExpertBank(3, 6, [5, 4], [2, 1], recompute=recompute, **options) for recompute in (False, True))
    again.load_state_dict(bank.state_dict())
    x, weights = torch.randn(9, *([2] if has_slots else []), 6), torch.rand(9, 2, 3)
    if bank.dropout:  # drawn expert by expert here, for all at once there: compare with itself
        bank = copy.deepcopy(again)
        bank._pieces = again._pieces  # type: ignore[method-assign]
        bank.recompute = False
    for each in (bank, again):
        torch.manual_seed(1)
        (each.mix(x, weights) if mixed else each(x)).square().sum().backward()
    for p, q in zip(bank.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("kind", FUSIONS.values(), ids=FUSIONS)
def test_every_layer_takes_the_options(kind: type[FusionLayer]) -> None:
    layer = build(kind, activation="silu", norm="layer", dropout=0.2, recompute=True)
    banks = [module for name, module in layer.named_modules() if isinstance(module, ExpertBank)]
    assert banks
    assert all(b.norms is not None and (b.activation, b.dropout, b.recompute) == ("silu", 0.2, True) for b in banks)
    layer(torch.randn(5, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert build(kind, norm="batch")(torch.randn(5, 6)).shape == (5, 2, 4)


@pytest.mark.parametrize("kind", FUSIONS.values(), ids=FUSIONS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of relu, silu, gelu, got 'tanh'"),
        ({"norm": "group"}, "norm must be None, layer or batch, got 'group'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
        ({"dropout": None}, "dropout must be a number, got None"),
        ({"recompute": "no"}, "recompute must be True or False, got 'no'"),
        ({"norm": "batch", "recompute": True}, "recompute does not go with norm='batch'"),
    ],
)
def test_options_that_make_no_expert_are_errors(kind: type[FusionLayer], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **options)


@pytest.mark.parametrize("kind", GATED)
def test_every_gated_layer_takes_gate_dropout(kind: type[FusionLayer]) -> None:
    torch.manual_seed(0)
    layer = build(kind, gate_dropout=0.4)
    seen: list[Tensor] = []
    for module in layer.modules():
        if isinstance(module, GateBank):
            module.register_forward_hook(lambda _, args, weights: seen.append(weights))
    layer(torch.randn(64, 6))
    layer.eval()(torch.randn(64, 6))
    for in_training, in_evaluation in zip(seen[:2], seen[2:], strict=True):
        always_hidden = (in_evaluation == 0).all(dim=0)
        assert (always_hidden | (in_evaluation > 0).all(dim=0)).all()
        sometimes_hidden = (in_training == 0).any(dim=0)
        assert sometimes_hidden[~always_hidden].all()
    with pytest.raises(ValueError, match="gate_dropout must be at least 0 and below 1, got 1"):
        build(kind, gate_dropout=1)


def test_gate_dropout_hides_experts_and_lets_the_others_make_up_for_them() -> None:
    torch.manual_seed(0)
    gates = GateBank(3, 4, 6, visible=[[0, 1, 2, 3], [1, 3], [2]], dropout=0.25)
    x = torch.randn(4000, 6)
    hidden, full = gates(x), gates.eval()(x)
    kept = hidden > 0
    torch.testing.assert_close(hidden.sum(dim=2), torch.ones(4000, 3))
    torch.testing.assert_close(hidden, full * kept / (full * kept).sum(dim=2, keepdim=True))
    assert not kept[:, 1, [0, 2]].any(), "what a gate may not see stays hidden"
    assert kept[:, 2, 2].all(), "a gate keeps its only expert"
    assert kept[:, 0].float().mean().item() == pytest.approx(0.75 + 0.25**4, abs=0.015)  # none left: all are kept
    assert kept[:, 1, [1, 3]].float().mean().item() == pytest.approx(0.75 + 0.25**2, abs=0.015)
    gates.train()(x)[:, 0].square().sum().backward()
    assert gates.weight.grad is not None
    assert gates.weight.grad.isfinite().all()
