"""How large a model is behind its tables, and the same architecture at another's size.

A comparison of architectures at the widths they happen to have compares sizes. Here the experts' widths are multiplied
by one factor until as many parameters, or as much arithmetic, stand behind the lookup as wanted.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtlrec.config import JobConfig
from mtlrec.config.kinds.family import PartConfig
from mtlrec.errors import ConfigError
from mtlrec.models.build import build_model
from mtlrec.models.multitask import OverArch

Measure = Literal["parameters", "flops"]
LARGEST_FACTOR, HALVINGS = 64.0, 40
NEAR = 0.05
"""How far from the wanted size a match may be; widths are whole numbers."""


class Capacity(NamedTuple):
    """Of what follows the lookup: bottom, fusion layer, heads.

    Attributes:
        parameters: how many numbers are trained there
        flops: of the products for one row, forward, at two for a multiplication and an addition
    """

    parameters: int
    flops: int


def capacity_of(job: JobConfig) -> Capacity:
    rows = 2
    model, inputs = model_and_inputs(job, rows)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return Capacity(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // rows)


def model_and_inputs(job: JobConfig, rows: int) -> tuple[OverArch, tuple[Tensor, dict[str, Tensor]]]:
    """What follows the lookup, freshly drawn, and something to call it with; the tables are not made."""
    dense = torch.randn(rows, len(job.features.dense))
    pooled = {feature.name: torch.zeros(rows, job.tables[feature.table].dim) for feature in job.features.sparse}
    return build_model(job).eval().over_arch, (dense, pooled)


def matched(job: JobConfig, fusion: PartConfig, target: Capacity, by: Measure) -> tuple[JobConfig, Capacity]:
    """The job with this fusion layer, its widths such that `by` is as near as can be to the target's.

    Raises ConfigError where no widths come within a twentieth of it: the bottom and the heads alone may be larger.
    """
    if "expert_hidden" not in fusion.arguments:
        raise ConfigError(f"{fusion.kind}: has no expert_hidden whose widths could change; compare without matching")
    wanted = getattr(target, by)

    def at(factor: float) -> tuple[JobConfig, Capacity]:
        scaled = with_fusion(job, _scaled(fusion, factor))
        return scaled, capacity_of(scaled)

    low, high = 0.0, 1.0
    found = [at(low), at(high)]
    while getattr(found[-1][1], by) < wanted and high < LARGEST_FACTOR:
        low, high = high, 2 * high
        found.append(at(high))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found.append(at(middle))
        size = getattr(found[-1][1], by)
        if size == wanted or found[-1][0] in [one for one, _ in found[:-1]]:
            break
        low, high = (middle, high) if size < wanted else (low, middle)
    best = min(found, key=lambda one: abs(getattr(one[1], by) - wanted))
    reached = getattr(best[1], by)
    if abs(reached - wanted) > NEAR * wanted:
        raise ConfigError(
            f"{fusion.kind}: no widths give {wanted:,} {by} behind the tables, the nearest have {reached:,}; "
            "compare at another size (expert_hidden of the job), or without matching"
        )
    return best


def with_fusion(job: JobConfig, fusion: PartConfig) -> JobConfig:
    """Checked anew: a fusion layer may not go with the job's tasks."""
    tree: dict[str, Any] = job.dump()
    tree["model"]["fusion"] = fusion.model_dump(mode="json")
    return JobConfig.model_validate(tree)


def _scaled(fusion: PartConfig, factor: float) -> PartConfig:
    levels = [[max(1, round(factor * width)) for width in widths] for widths in fusion.arguments["expert_hidden"]]
    return fusion.model_copy(update={"expert_hidden": levels})
