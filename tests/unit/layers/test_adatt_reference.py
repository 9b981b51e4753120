"""The public reference's parameters in and out; that the numbers agree is in test_golden.py."""

from typing import Any

import pytest
import torch

from mtlrec.layers import (
    PLE,
    AdaTT,
    AdaTTSp,
    AsymmetricBottom,
    CrossStitch,
    MMoE,
    SharedBottom,
    SingleTask,
    from_adatt_reference,
    to_adatt_reference,
)

CONFIG: dict[str, Any] = {
    "kind": "ple",
    "input_dim": 6,
    "num_tasks": 2,
    "num_task_experts": [1, 2],
    "num_shared_experts": 1,
    "expert_hidden": [[4], [3]],
}


def weights() -> dict[str, torch.Tensor]:
    return to_adatt_reference(PLE(6, 2, [[4], [3]], [1, 2], 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_state_dicts_dtype_is_kept_and_can_be_changed(dtype: torch.dtype) -> None:
    layer = from_adatt_reference(CONFIG, {name: tensor.to(dtype) for name, tensor in weights().items()})
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert layer(torch.randn(3, 6, dtype=dtype)).dtype == dtype
    assert layer.double()(torch.randn(3, 6, dtype=torch.float64)).dtype == torch.float64
    assert layer.float()(torch.randn(3, 6)).dtype == torch.float32


@pytest.mark.parametrize(
    "layer",
    [
        SharedBottom(6, 2, [[4, 3], [2]]),
        MMoE(6, 2, [[4], [3]], 3, gate_hidden=[[5, 2], []]),
        PLE(6, 2, [[4], [3]], [1, 2], 1),
        AdaTTSp(6, 2, [[4], [3]], 2),
        AdaTTSp(6, 2, [[4], [3]], 1),
        AdaTT(6, 2, [[4], [3]], [1, 2], 2),
        AdaTT(6, 2, [[4]], 2, 1),
        AdaTT(6, 2, [[4], [3]], 1, 1),
        AdaTT(6, 2, [[4]], 2, 1, native_residual=False),
        CrossStitch(6, 3, [[4], [3]]),
        AsymmetricBottom(6, 3, [[4], [3]]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_names_cover_every_number_of_the_layer_once(layer: torch.nn.Module) -> None:
    assert sum(tensor.numel() for tensor in to_adatt_reference(layer).values()) == sum(
        p.numel() for p in layer.parameters()
    )


def test_config_and_weights_are_copied() -> None:
    config, given = dict(CONFIG), weights()
    layer = from_adatt_reference(config, given)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for tensor in to_adatt_reference(layer).values():
            tensor.fill_(1)
    assert config == CONFIG
    assert all(tensor.ne(0).any() for tensor in given.values())
    assert all(parameter.eq(0).all() for parameter in layer.parameters())


@pytest.mark.parametrize("kind", ["single_task", "no_such_kind", None])
def test_a_kind_without_reference_is_an_error(kind: str | None) -> None:
    with pytest.raises(
        ValueError, match=f"kind {kind!r} has no public .* shared_bottom, asymmetric, cross_stitch, mmoe, ple"
    ):
        from_adatt_reference({**CONFIG, "kind": kind}, weights())


def test_a_layer_without_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="no names for the weights of SingleTask; it has them for SharedBottom, Asymm"):
        to_adatt_reference(SingleTask(6, 2, [[4]]))


def test_options_without_reference_are_an_error() -> None:
    with pytest.raises(ValueError, match="plain ReLU experts only"):
        to_adatt_reference(PLE(6, 2, [[4]], 1, 1, norm="layer"))
    with pytest.raises(ValueError, match="plain ReLU experts only"):
        from_adatt_reference({**CONFIG, "activation": "silu"}, weights())


def test_a_config_that_does_not_fit_the_layer_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"config of ple does not fit PLE: .*num_experts"):
        from_adatt_reference({**CONFIG, "num_experts": 3}, weights())
    with pytest.raises(ValueError, match=r"config of ple does not fit PLE: .*missing .*num_tasks"):
        from_adatt_reference({key: value for key, value in CONFIG.items() if key != "num_tasks"}, weights())


def test_a_state_dict_that_does_not_fit_lists_all_that_is_wrong() -> None:
    given = weights()
    del given["experts.1.3.mlp_net.0.bias"]
    given["stitchs.0.weight"] = torch.ones(2, 2)
    given["gate_weights.0.0.0.weight"] = torch.ones(3, 6)
    with pytest.raises(ValueError, match="does not fit") as error:
        from_adatt_reference(CONFIG, given)
    assert "experts.1.3.mlp_net.0.bias is missing" in str(error.value)
    assert "stitchs.0.weight is not expected" in str(error.value)
    assert "gate_weights.0.0.0.weight has shape [3, 6] instead of [2, 6]" in str(error.value)


def test_mixed_dtypes_are_an_error() -> None:
    given = weights()
    given["gate_weights.0.0.0.bias"] = given["gate_weights.0.0.0.bias"].double()
    with pytest.raises(ValueError, match="mixes dtypes"):
        from_adatt_reference(CONFIG, given)


def test_an_empty_state_dict_is_an_error() -> None:
    with pytest.raises(ValueError, match="is missing"):
        from_adatt_reference(CONFIG, {})
