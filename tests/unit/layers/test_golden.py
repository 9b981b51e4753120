"""The fusion layers against the published ones: outputs and all gradients, from tests/assets/golden."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlrec.layers import from_adatt_reference, to_adatt_reference
from mtlrec.layers.adatt_reference import reference_tensors

GOLDEN = Path(__file__).parents[2] / "assets" / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def load(case: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with np.load(GOLDEN / f"{case}.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]).to(dtype) for name in arrays.files if name != "config"}
        return json.loads(str(arrays["config"])), tensors


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_every_case_is_there() -> None:
    assert CASES == [
        "adatt",
        "adatt_sp",
        "adatt_sp_no_residual",
        "adatt_sp_one_expert",
        "adatt_uneven_experts",
        "adatt_unit",
        "asymmetric",
        "cgc",
        "cross_stitch",
        "ml_mmoe",
        "mmoe",
        "ple",
        "ple_uneven_experts",
        "shared_bottom",
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_the_references(case: str, dtype: torch.dtype, tolerance: float) -> None:
    config, golden = load(case, dtype)
    layer = from_adatt_reference(config, under("param/", golden))
    x = golden["x"].requires_grad_()

    out = layer(x)
    (out * golden["cotangent"]).sum().backward()
    gradients = reference_tensors(layer, lambda parameter: parameter.grad)

    expected = {"out": golden["out"], "grad_x": golden["grad_x"], **under("grad/", golden)}
    torch.testing.assert_close(
        {"out": out.detach(), "grad_x": x.grad, **gradients}, expected, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("case", CASES)
def test_the_weights_come_back_as_they_went_in(case: str) -> None:
    config, golden = load(case, torch.float64)
    weights = under("param/", golden)
    torch.testing.assert_close(to_adatt_reference(from_adatt_reference(config, weights)), weights, atol=0, rtol=0)


def test_a_layer_given_a_slot_per_module_equals_one_given_the_same_for_all() -> None:
    for case in ("adatt", "adatt_sp", "adatt_sp_one_expert", "adatt_unit", "asymmetric", "cgc", "cross_stitch", "ple"):
        config, golden = load(case, torch.float64)
        layer = from_adatt_reference(config, under("param/", golden))
        slots = golden["x"].unsqueeze(1).expand(-1, layer.num_slots, -1)
        torch.testing.assert_close(layer(slots), golden["out"], atol=1e-10, rtol=1e-10)
