"""The bottoms against NumPy loops over rows, and their errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlrec.layers import Bottom, Concat, Cross, Dot, MaskNet

SETTINGS = settings(max_examples=30, deadline=None)
DENSE_DIM = st.integers(0, 4)
DIMS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def inputs(dense_dim: int, embedding_dims: list[int], batch: int = 3) -> tuple[Tensor, list[Tensor]]:
    dense = torch.randn(batch, dense_dim, dtype=torch.float64)
    return dense, [torch.randn(batch, dim, dtype=torch.float64) for dim in embedding_dims]


def row_of_all(dense: Tensor, embeddings: list[Tensor], row: int) -> np.ndarray:
    return np.concatenate([part[row].numpy() for part in [dense, *embeddings]])


def numpy_linear(linear: nn.Linear, x: np.ndarray) -> np.ndarray:
    bias = 0.0 if linear.bias is None else linear.bias.detach().numpy()
    return linear.weight.detach().numpy() @ x + bias


def linears(module: nn.Module) -> list[nn.Linear]:
    return [child for child in module.modules() if isinstance(child, nn.Linear)]


def assert_rows(actual: Tensor, rows: list[np.ndarray]) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), np.stack(rows), atol=1e-12, rtol=1e-12)


@SETTINGS
@given(dense_dim=DENSE_DIM, dims=DIMS, hidden=st.lists(st.integers(1, 4), max_size=2))
def test_concat(dense_dim: int, dims: list[int], hidden: list[int]) -> None:
    bottom = Concat(dense_dim, dims, hidden).double()
    dense, embeddings = inputs(dense_dim, dims)
    rows = []
    for row in range(3):
        x = row_of_all(dense, embeddings, row)
        for linear in linears(bottom):
            x = np.maximum(numpy_linear(linear, x), 0)
        rows.append(x)
    assert_rows(bottom(dense, embeddings), rows)
    assert bottom.output_dim == len(rows[0])


@SETTINGS
@given(
    dense_dim=DENSE_DIM,
    dim=st.integers(1, 5),
    features=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 4), max_size=2),
)
def test_dot(dense_dim: int, dim: int, features: int, hidden: list[int]) -> None:
    if dense_dim == 0 and features == 1:
        features = 2
    bottom = Dot(dense_dim, [dim] * features, hidden).double()
    dense, embeddings = inputs(dense_dim, [dim] * features)
    rows = []
    for row in range(3):
        vectors = [embedding[row].numpy() for embedding in embeddings]
        result: list[float] = []
        if dense_dim:
            *layers, projection = linears(bottom)
            x = dense[row].numpy()
            for linear in layers:
                x = np.maximum(numpy_linear(linear, x), 0)
            vectors.insert(0, numpy_linear(projection, x))
            result += list(vectors[0])
        for i in range(len(vectors)):
            result += [float(vectors[i] @ vectors[j]) for j in range(i + 1, len(vectors))]
        rows.append(np.array(result))
    assert_rows(bottom(dense, embeddings), rows)
    assert bottom.output_dim == len(rows[0])


@SETTINGS
@given(dense_dim=DENSE_DIM, dims=DIMS, num_layers=st.integers(1, 3), rank=st.none() | st.integers(1, 3))
def test_cross(dense_dim: int, dims: list[int], num_layers: int, rank: int | None) -> None:
    bottom = Cross(dense_dim, dims, num_layers, rank).double()
    dense, embeddings = inputs(dense_dim, dims)
    rows = []
    for row in range(3):
        x0 = x = row_of_all(dense, embeddings, row)
        for layer in bottom.crosses:
            wx = x
            for linear in linears(layer):
                wx = numpy_linear(linear, wx)
            x = x0 * wx + x
        rows.append(x)
    assert_rows(bottom(dense, embeddings), rows)
    assert bottom.output_dim == len(rows[0])


def test_low_rank_cross_has_one_bias_and_two_thin_matrices() -> None:
    shapes = [tuple(parameter.shape) for parameter in Cross(4, [6], num_layers=1, rank=2).parameters()]
    assert sorted(shapes) == [(2, 10), (10,), (10, 2)]


BOTTOMS = [
    Concat(4, [3, 3], [5]),
    Dot(4, [3, 3], [5]),
    Dot(0, [3, 3, 3]),
    Cross(4, [3, 3]),
    Cross(4, [3, 3], rank=2),
    MaskNet(4, [3, 3], block_dim=8, hidden=[5]),
    MaskNet(4, [3, 3, 2, 1], block_dim=8, mode="serial"),
]
each_bottom = pytest.mark.parametrize("bottom", BOTTOMS, ids=lambda bottom: type(bottom).__name__)


def float_inputs(bottom: Bottom, batch: int) -> tuple[Tensor, list[Tensor]]:
    return torch.randn(batch, bottom.dense_dim), [torch.randn(batch, dim) for dim in bottom.embedding_dims]


@each_bottom
def test_gradient_reaches_every_parameter_and_input(bottom: Bottom) -> None:
    torch.manual_seed(0)
    dense, embeddings = float_inputs(bottom, 32)
    leaves = [leaf.requires_grad_() for leaf in ([dense] if bottom.dense_dim else []) + embeddings]
    bottom.zero_grad()
    bottom(dense, embeddings).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.ne(0).any() for tensor in [*leaves, *bottom.parameters()])


@each_bottom
def test_exports_with_a_dynamic_batch(bottom: Bottom) -> None:
    batch = {0: torch.export.Dim("batch")}
    shapes = {"dense": batch, "embeddings": [batch] * len(bottom.embedding_dims)}
    exported = torch.export.export(bottom, float_inputs(bottom, 4), dynamic_shapes=shapes).module()
    dense, embeddings = float_inputs(bottom, 9)
    torch.testing.assert_close(exported(dense, embeddings), bottom(dense, embeddings))


@each_bottom
def test_inputs_of_other_widths_are_errors(bottom: Bottom) -> None:
    dense, embeddings = float_inputs(bottom, 2)
    for wrong in [
        (torch.randn(2, 9), embeddings),
        (dense, embeddings[1:]),
        (dense, [*embeddings[1:], torch.randn(2, 4)]),
    ]:
        with pytest.raises(ValueError, match=rf"takes dense \[B, {bottom.dense_dim}\] and embeddings of dims \[3, 3"):
            bottom(*wrong)


def test_sizes_that_make_no_bottom_are_errors() -> None:
    with pytest.raises(ValueError, match=r"Dot needs one embedding dim for all features, got \[4, 8\]"):
        Dot(3, [4, 8], [5])
    for dense_dim, dims in [(0, [4]), (3, [])]:
        with pytest.raises(ValueError, match="Dot needs two vectors to multiply"):
            Dot(dense_dim, dims, [5])
    for kind in (Concat, Dot, Cross, MaskNet):
        with pytest.raises(ValueError, match="needs something to read"):
            kind(0, [])
        with pytest.raises(ValueError, match="dense_dim must be 0 or more, got -1"):
            kind(-1, [4, 4])
        with pytest.raises(ValueError, match="every width in embedding_dims must be at least 1, got 0"):
            kind(2, [4, 0])
    for change in ({"num_layers": 0}, {"rank": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be at least 1, got 0"):
            Cross(3, [4], **change)
    with pytest.raises(ValueError, match="every width in hidden must be at least 1"):
        Concat(3, [4], [0])
