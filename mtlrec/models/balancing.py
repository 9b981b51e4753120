"""From the config's weighting to a balancer: for the methods on gradients, TorchJD's weightings."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mtlrec import config as cfg
from mtlrec.errors import ConfigError
from mtlrec.io import one_line
from mtlrec.losses import Balancing, DynamicWeightAverage, GradientBalancing, Uncertainty

SMALLEST_NORM = 1e-8
"""Below it, relative to the root of the gradients' summed squares, CAGrad sees the end of training. TorchJD's own 1e-4
is reached by a task whose loss is in another unit, and all weights are then 0."""
REMEDY = "pip install 'torchjd[cagrad,quadprog-projector]==0.18.*'"


def build_balancing(weighting: cfg.Weighting, num_tasks: int) -> Balancing | None:
    """None where the tasks have weights and nothing else.

    Raises ConfigError where the method needs packages that are not installed.
    """
    match weighting:
        case cfg.StaticWeighting() | cfg.DecayWeighting():
            return None
        case cfg.UncertaintyWeighting():
            return Uncertainty(num_tasks)
        case cfg.DWAWeighting(temperature=temperature, every=every):
            return DynamicWeightAverage(num_tasks, temperature, every or 1)
        case cfg.GradientWeighting() | cfg.CAGradWeighting():
            # PCGrad sums the tasks' projected gradients; the others speak of the tasks' mean.
            return GradientBalancing(_torchjd_weighting(weighting), of_mean=weighting.kind != "pcgrad")


def _torchjd_weighting(weighting: cfg.GradientWeighting | cfg.CAGradWeighting) -> Callable[[Tensor], Tensor]:
    try:
        from torchjd import aggregation

        match weighting:
            case cfg.CAGradWeighting(c=c):
                return aggregation.CAGradWeighting(c, norm_eps=SMALLEST_NORM)
            case cfg.GradientWeighting(kind="pcgrad"):
                return aggregation.PCGradWeighting()
            case cfg.GradientWeighting(kind="mgda"):
                return aggregation.MGDAWeighting()
            case cfg.GradientWeighting(kind="upgrad"):
                return aggregation.UPGradWeighting()
            case _:
                return aggregation.AlignedMTLWeighting()
    except ImportError as error:
        raise ConfigError(f"loss.weighting.kind = {weighting.kind!r}: {one_line(error)}; {REMEDY}") from None
