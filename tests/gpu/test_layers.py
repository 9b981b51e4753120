"""The fusion layers on a CUDA device: the numbers of the CPU, forward and backward. Needs torch alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtlrec.layers import PLE, AdaTT, AdaTTSp, CrossStitch, FusionLayer, MMoE, SingleTask

pytestmark = pytest.mark.gpu

LAYERS: list[Callable[..., FusionLayer]] = [
    lambda **options: SingleTask(48, 3, [[32, 16], [8]], **options),
    lambda **options: CrossStitch(48, 3, [[32, 16], [8]], **options),
    lambda **options: MMoE(48, 3, [[32, 16], [8]], 5, gate_hidden=[[7], []], **options),
    lambda **options: PLE(48, 3, [[32, 16], [8]], [1, 2, 3], 2, **options),
    lambda **options: AdaTTSp(48, 3, [[32, 16], [8]], 2, **options),
    lambda **options: AdaTT(48, 3, [[32, 16], [8]], [1, 2, 3], 2, **options),
]


def run(layer: FusionLayer, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach().cpu(), x.grad.cpu(), *(p.grad.cpu() for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("build", LAYERS, ids=lambda build: type(build()).__name__)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("has_slots", [False, True])
def test_equals_the_cpu(build: Callable[..., FusionLayer], recompute: bool, has_slots: bool) -> None:
    torch.manual_seed(0)
    layer = build(recompute=recompute).double()
    if has_slots and layer.num_slots is None:
        pytest.skip("this kind takes no slots")
    x = torch.randn(33, *([layer.num_slots] if has_slots else []), 48, dtype=torch.float64)
    on_device = copy.deepcopy(layer).cuda()
    torch.testing.assert_close(run(on_device, x.cuda()), run(layer, x), atol=1e-10, rtol=1e-10)
    compiled = torch.compile(copy.deepcopy(layer).cuda(), fullgraph=True)
    torch.testing.assert_close(compiled(x.cuda()).cpu(), layer(x), atol=1e-10, rtol=1e-10)
