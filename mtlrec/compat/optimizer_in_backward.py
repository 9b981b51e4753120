"""The tables' optimizer inside backward, by torch's private function.

Upstream: TorchRec reads a table's optimizer from attributes that `_apply_optimizer_in_backward` sets on its parameter.
That function is private. TorchRec's public `apply_optimizer_in_backward` is deprecated, only calls the private one and
tells its callers to do the same. `fused_params` of a sharder is public too, but the planner does not read it and leaves
the optimizer's state out of its estimate of memory. Seen in torch 2.13 and TorchRec 1.8.
Delete when: torch exports the function, or TorchRec's is no longer deprecated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward


def apply_optimizer_in_backward(
    kind: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], options: dict[str, Any]
) -> None:
    """Update each of `parameters` by an optimizer of its own as soon as backward has its gradient.

    Args:
        options: of the optimizer's constructor
    """
    _apply_optimizer_in_backward(kind, parameters, options)
