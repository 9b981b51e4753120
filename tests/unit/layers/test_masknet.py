"""MaskNet against a NumPy loop over rows and blocks, written from the paper's formulas."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtlrec.layers import MaskNet

EPS = 1e-5  # of torch.nn.LayerNorm


def layer_norm(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + EPS))


def randomize(module: nn.Module) -> None:
    """Biases and norms start as constants, which would hide where they are used."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)


class Loop:
    """The paper's formulas for one row."""

    def __init__(self, bottom: MaskNet) -> None:
        self.values = {name: tensor.numpy() for name, tensor in bottom.state_dict().items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.values[f"{name}.weight"] @ x + self.values.get(f"{name}.bias", 0.0))

    def mask(self, block: int, everything: np.ndarray) -> np.ndarray:
        aggregated = np.maximum(self.linear(f"blocks.{block}.aggregation", everything), 0)
        return self.linear(f"blocks.{block}.projection", aggregated)

    def block(self, block: int, x: np.ndarray, everything: np.ndarray) -> np.ndarray:
        masked = self.mask(block, everything) * x
        weight, bias = (self.values[f"blocks.{block}.norm.{name}"] for name in ("weight", "bias"))
        return np.maximum(layer_norm(self.values[f"blocks.{block}.linear.weight"] @ masked) * weight + bias, 0)

    def normalized(self, dense: np.ndarray, embeddings: list[np.ndarray]) -> np.ndarray:
        parts, start = [dense], 0
        for embedding in embeddings:
            own = slice(start, start + len(embedding))
            x = layer_norm(embedding) if len(embedding) > 1 else embedding
            parts.append(
                x * self.values["embedding_norm.weight"][own] + self.values["embedding_norm.bias"][own],
            )
            start = own.stop
        return np.concatenate(parts)


@settings(max_examples=40, deadline=None)
@given(
    dense_dim=st.integers(0, 3),
    dims=st.lists(st.integers(1, 4), min_size=1, max_size=5) | st.lists(st.just(3), min_size=1, max_size=4),
    num_blocks=st.integers(1, 3),
    block_dim=st.integers(2, 5),
    reduction=st.sampled_from([0.01, 0.5, 2, 3.0]),
    mode=st.sampled_from(["parallel", "serial"]),
    hidden=st.lists(st.integers(1, 4), max_size=2),
)
def test_masknet_equals_a_loop(
    dense_dim: int,
    dims: list[int],
    num_blocks: int,
    block_dim: int,
    reduction: float,
    mode: Literal["parallel", "serial"],
    hidden: list[int],
) -> None:
    bottom = MaskNet(dense_dim, dims, num_blocks, block_dim, reduction, mode, hidden).double()
    randomize(bottom)
    loop = Loop(bottom)
    dense = torch.randn(3, dense_dim, dtype=torch.float64)
    embeddings = [torch.randn(3, dim, dtype=torch.float64) for dim in dims]
    expected = []
    for row in range(3):
        parts = [embedding[row].numpy() for embedding in embeddings]
        everything = np.concatenate([dense[row].numpy(), *parts])
        x = loop.normalized(dense[row].numpy(), parts)
        if mode == "serial":
            for block in range(num_blocks):
                x = loop.block(block, x, everything)
        else:
            x = np.concatenate([loop.block(block, x, everything) for block in range(num_blocks)])
        for layer in range(len(hidden)):
            x = np.maximum(loop.linear(f"mlp.net.{2 * layer}", x), 0)
        expected.append(x)
    np.testing.assert_allclose(bottom(dense, embeddings).detach().numpy(), expected, atol=1e-9, rtol=1e-9)
    assert bottom.output_dim == len(expected[0])
    aggregations = {tuple(block.aggregation.weight.shape) for block in bottom.blocks}
    width = dense_dim + sum(dims)
    assert aggregations == {(max(1, round(reduction * width)), width)}


@pytest.mark.parametrize("mode", ["parallel", "serial"])
def test_dense_features_alone_are_not_normalized(mode: Literal["parallel", "serial"]) -> None:
    bottom = MaskNet(4, [], num_blocks=2, block_dim=3, mode=mode).double()
    randomize(bottom)
    loop, dense = Loop(bottom), torch.randn(2, 4, dtype=torch.float64)
    actual = bottom(dense, []).detach().numpy()
    for row, x in enumerate(dense.numpy()):
        first = loop.block(0, x, x)
        wanted = loop.block(1, first, x) if mode == "serial" else np.concatenate([first, loop.block(1, x, x)])
        np.testing.assert_allclose(actual[row], wanted, atol=1e-10)


class CountOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dims", "norms"), [([4] * 9, 1), ([4, 4, 2, 4, 1], 3)])
def test_neighbors_of_one_dim_are_normalized_by_one_operator(dims: list[int], norms: int) -> None:
    bottom = MaskNet(2, dims, num_blocks=1, block_dim=3)
    with torch.no_grad(), CountOperators() as count:
        bottom(torch.randn(5, 2), [torch.randn(5, dim) for dim in dims])
    of_the_block = 1
    assert sum("native_layer_norm" in name for name in count.names) == norms + of_the_block


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"block_dim": 0}, "block_dim must be at least 1, got 0"),
        ({"block_dim": 1}, "block_dim must be at least 2, got 1"),
        ({"reduction": 0.0}, "reduction must be above 0, got 0.0"),
        ({"reduction": -1}, "reduction must be above 0, got -1"),
        ({"mode": "both"}, "mode must be parallel or serial, got 'both'"),
        ({"hidden": [0]}, "every width in hidden must be at least 1, got 0"),
    ],
)
def test_arguments_that_make_no_masknet_are_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskNet(2, [4], **arguments)
