"""The parts the fusion layers are made of: MLP, the expert bank and the gates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlrec.layers import MLP, ExpertBank, GateBank
from mtlrec.layers.blocks.linear import BatchedLinear

COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=8)


def plain_expert(bank: ExpertBank, expert: int) -> nn.Sequential:
    """Expert `expert` of the bank as the `torch.nn` modules one would write for it alone."""
    net = nn.Sequential()
    for layer in bank.layers:
        linear = nn.Linear(layer.weight.shape[2], layer.weight.shape[1], dtype=torch.float64)
        linear.weight.data, linear.bias.data = layer.weight.data[expert], layer.bias.data[expert]
        net.extend([linear, nn.ReLU()])
    return net


class TestMLP:
    def test_is_linear_and_relu_for_every_width_the_last_included(self) -> None:
        mlp = MLP(6, [5, 4])
        x = torch.randn(3, 6)
        first, second = (module for module in mlp.modules() if isinstance(module, nn.Linear))
        assert torch.equal(mlp(x), second(first(x).relu()).relu())
        assert mlp.output_dim == 4

    @pytest.mark.parametrize("leading", [(), (3,), (3, 2), (0,), (2, 1, 4)])
    def test_takes_any_leading_dimensions(self, leading: tuple[int, ...]) -> None:
        assert MLP(6, [4])(torch.randn(*leading, 6)).shape == (*leading, 4)

    def test_without_layers_is_the_identity(self) -> None:
        mlp = MLP(6, [])
        x = torch.randn(3, 6)
        assert mlp(x) is x
        assert mlp.output_dim == 6

    def test_errors_name_what_is_wrong(self) -> None:
        with pytest.raises(ValueError, match="input_dim must be at least 1, got 0"):
            MLP(0, [4])
        with pytest.raises(ValueError, match="every width in hidden must be at least 1, got -1"):
            MLP(6, [4, -1])
        with pytest.raises(ValueError, match="hidden must be a list of layer widths"):
            MLP(6, 4)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"\[\.\.\., 6\], got \[3, 5\]"):
            MLP(6, [4])(torch.randn(3, 5))


class TestExpertBank:
    @settings(max_examples=40, deadline=None)
    @given(
        counts=COUNTS,
        hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
        batch=st.integers(0, 5),
        data=st.data(),
    )
    def test_equals_a_loop_over_the_experts(
        self, counts: list[int], hidden: list[int], batch: int, data: st.DataObject
    ) -> None:
        has_slots = data.draw(st.booleans())
        bank = ExpertBank(sum(counts), 7, hidden, counts).double()
        x = torch.randn(batch, *([len(counts)] if has_slots else []), 7, dtype=torch.float64)

        slot_of = [slot for slot, count in enumerate(counts) for _ in range(count)]
        inputs = [x[:, slot] if has_slots else x for slot in slot_of]
        expected = torch.stack([plain_expert(bank, e)(inputs[e]) for e in range(bank.num_experts)], dim=1)

        torch.testing.assert_close(bank(x), expected, atol=1e-12, rtol=1e-12)

    def test_each_expert_is_initialized_as_a_linear_of_its_own(self) -> None:
        torch.manual_seed(0)
        layer, linear = BatchedLinear(400, 16, 32), nn.Linear(16, 400 * 32)
        bound = 1 / math.sqrt(16)  # of U(-bound, bound): standard deviation bound / sqrt(3), kurtosis 9 / 5
        for ours, theirs in [(layer.weight, linear.weight), (layer.bias, linear.bias)]:
            for drawn in (ours, theirs):
                assert drawn.abs().max() <= bound
                assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
                assert (drawn**4).mean().item() == pytest.approx(bound**4 / 5, rel=0.05)
        assert layer.weight.flatten(1).std(dim=1).min() > 0.8 * bound / math.sqrt(3), (
            "every expert has weights of its own"
        )

    def test_the_callers_lists_are_left_alone(self) -> None:
        hidden, counts = [4, 3], [1, 2]
        bank = ExpertBank(3, 5, hidden, counts)
        hidden.append(9)
        counts.append(9)
        assert bank.output_dim == 3
        assert bank.experts_per_slot == (1, 2)

    def test_errors_name_what_is_wrong(self) -> None:
        with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
            ExpertBank(0, 5, [4])
        with pytest.raises(ValueError, match="hidden must have at least one width"):
            ExpertBank(2, 5, [])
        with pytest.raises(ValueError, match=r"add up to num_experts=3, got \[1, 1\]"):
            ExpertBank(3, 5, [4], [1, 1])
        with pytest.raises(ValueError, match=r"add up to num_experts=3, got \[3, 0\]"):
            ExpertBank(3, 5, [4], [3, 0])
        with pytest.raises(ValueError, match=r"\[B, 5\] or \[B, 2, 5\], got \[8, 3, 5\]"):
            ExpertBank(3, 5, [4], [1, 2])(torch.randn(8, 3, 5))


class TestGateBank:
    @settings(max_examples=40, deadline=None)
    @given(
        num_experts=st.integers(1, 6),
        hidden=st.lists(st.integers(1, 4), max_size=2),
        has_slots=st.booleans(),
        data=st.data(),
    )
    def test_equals_a_softmax_over_the_experts_each_gate_sees(
        self, num_experts: int, hidden: list[int], has_slots: bool, data: st.DataObject
    ) -> None:
        choice = st.lists(st.integers(0, num_experts - 1), min_size=1, unique=True)
        visible = data.draw(st.lists(choice, min_size=1, max_size=5))
        bank = GateBank(len(visible), num_experts, 7, hidden, visible).double()
        selector = torch.randn(4, *([len(visible)] if has_slots else []), 7, dtype=torch.float64)

        expected = torch.zeros(4, len(visible), num_experts, dtype=torch.float64)
        for gate, seen in enumerate(visible):
            own = selector[:, gate] if has_slots else selector
            if bank.selector is not None:
                own = plain_expert(bank.selector, gate)(own)
            logits = own @ bank.weight[bank.rows(gate)].T + bank.bias[bank.rows(gate)]
            for column, expert in enumerate(seen):
                expected[:, gate, expert] = logits.softmax(dim=1)[:, column]

        torch.testing.assert_close(bank(selector), expected, atol=1e-12, rtol=1e-12)

    def test_works_when_built_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            bank = GateBank(2, 3, 5, visible=[[0, 2], [1, 2]])
        bank = bank.to_empty(device="cpu")
        bank.reset_parameters()
        weights = bank(torch.randn(4, 5))
        torch.testing.assert_close(weights.sum(dim=2), torch.ones(4, 2))
        assert weights[:, 0, 1].eq(0).all()
        assert weights[:, 1, 0].eq(0).all()

    def test_only_the_weights_are_in_the_state_dict(self) -> None:
        assert set(GateBank(2, 3, 5, visible=[[0, 2], [1, 2]]).state_dict()) == {"weight", "bias"}

    @pytest.mark.parametrize("visible", [[[0]], [[0], []], [[0], [3]], [[0], [-1]], [[0], [1, 1]]])
    def test_a_gate_sees_some_experts_that_exist(self, visible: list[list[int]]) -> None:
        with pytest.raises(ValueError, match=r"each of the 2 gates at least one of the experts 0\.\.2"):
            GateBank(2, 3, 5, visible=visible)

    def test_an_input_of_another_shape_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"GateBank takes .* \[B, 5\] or \[B, 2, 5\], got \[8, 4\]"):
            GateBank(2, 3, 5)(torch.randn(8, 4))


def test_empty_cells_survive_bfloat16_autocast() -> None:
    bank = GateBank(2, 3, 5, visible=[[0, 2], [1, 2]])
    for x in (torch.randn(4, 5), torch.randn(4, 2, 5)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            weights: Tensor = bank(x)
        (weights * torch.randn(2, 3)).sum().backward()
        assert weights[:, 0, 1].eq(0).all()
        assert bank.weight.grad is not None
        assert bank.weight.grad.isfinite().all()
