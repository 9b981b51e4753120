"""What a model's gates and experts do, level by level: means over rows, and over ranks.

Shapes: G gates, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlrec.config import JobConfig
from mtlrec.config.model import AdaTTFusion, AdaTTSpFusion, MMoEFusion, PLEFusion
from mtlrec.layers import LevelDiagnostics
from mtlrec.metrics.binary import sum_over_ranks

PEAK = 0.9
"""A gate that gives one expert more than this has hardly mixed."""


@dataclass(frozen=True)
class Level:
    """Means over rows.

    Attributes:
        name: level 1, level 2, ...
        gates, experts: their names
        gate: [G][E], what the gates give the experts; adds up to 1 over the experts
        deviation: [G][E], its standard deviation over rows
        weight: [G][E], what the experts are weighed with, AdaTT's native residual included
        entropy: [G], of a row's gate, 0 for one expert alone to 1 for all alike that it looks at
        peaked: [G], the share of rows where one expert gets more than 0.9
        norm: [E], the Euclidean norm of an expert's output
        zeros: [E], the share of its outputs that are exactly zero
        shared: how many of the experts, the last ones, belong to no task; 0 where none belongs to a task
    """

    name: str
    gates: list[str]
    experts: list[str]
    gate: list[list[float]]
    deviation: list[list[float]]
    weight: list[list[float]]
    entropy: list[float]
    peaked: list[float]
    norm: list[float]
    zeros: list[float]
    shared: int = 0


class LevelSums:
    """What adds up over rows, and over ranks."""

    def __init__(self, like: LevelDiagnostics) -> None:
        self.rows = like.gates.new_zeros((), dtype=torch.float64)
        self.parts = [
            torch.zeros(shape, dtype=torch.float64, device=like.gates.device)
            for shape in (*[like.gates.shape[1:]] * 3, *[like.gates.shape[1:2]] * 2, *[like.norms.shape[1:]] * 2)
        ]

    def add(self, seen: LevelDiagnostics, real: Tensor) -> None:
        """`real`: which rows are not padding."""
        gates, weights = seen.gates[real].double(), seen.weights[real].double()
        seen_experts = (gates > 0).any(0).sum(-1).clamp(min=2)  # PLE's gates do not look at other tasks' experts
        entropy = torch.special.entr(gates).sum(-1) / seen_experts.log()
        found = (gates, gates.square(), weights, entropy, (gates.amax(-1) > PEAK).double(), seen.norms[real].double())
        for total, part in zip(self.parts, (*found, seen.zeros[real].double()), strict=True):
            total += part.sum(0)
        self.rows += real.sum()

    def means(self) -> list[Tensor]:
        """Collective."""
        rows = sum_over_ranks(self.rows).clamp(min=1)
        return [sum_over_ranks(total) / rows for total in self.parts]


def levels_of(sums: Mapping[str, LevelSums], job: JobConfig) -> list[Level]:
    """Collective. `sums` by the level's module."""
    in_order = sorted(sums.items(), key=lambda named: int(re.findall(r"\d+", named[0])[-1]))
    return [_level(f"level {index}", one, job, index == len(in_order)) for index, (_, one) in enumerate(in_order, 1)]


def _level(name: str, sums: LevelSums, job: JobConfig, is_last: bool) -> Level:
    gate, square, weight, entropy, peaked, norm, zeros = sums.means()
    deviation = (square - gate.square()).clamp(min=0).sqrt()
    gates, experts = gate.shape
    of_tasks = _experts_of_tasks(job)
    return Level(
        name=name,
        gates=gate_names(job, gates, is_last),
        experts=expert_names(job, experts),
        gate=gate.tolist(),
        deviation=deviation.tolist(),
        weight=weight.tolist(),
        entropy=entropy.tolist(),
        peaked=peaked.tolist(),
        norm=norm.tolist(),
        zeros=zeros.tolist(),
        shared=experts - sum(of_tasks) if of_tasks else 0,
    )


def gate_names(job: JobConfig, gates: int, is_last: bool) -> list[str]:
    """A gate belongs to a task, and one more to the shared module; in MMoE before the last level to an expert of the
    next."""
    if isinstance(job.model.fusion, MMoEFusion) and not is_last:
        return [f"for expert {index}" for index in range(1, gates + 1)]
    tasks = [task.name for task in job.tasks]
    return tasks if gates == len(tasks) else [*tasks, _shared_module(job)]


def expert_names(job: JobConfig, experts: int) -> list[str]:
    counts = _experts_of_tasks(job)
    if not counts:
        return [f"expert {index}" for index in range(1, experts + 1)]
    tasks = [task.name for task in job.tasks]
    modules = [*zip(tasks, counts, strict=True), (_shared_module(job), experts - sum(counts))]
    return [module if count == 1 else f"{module} {index}" for module, count in modules for index in range(1, count + 1)]


def _experts_of_tasks(job: JobConfig) -> list[int]:
    """Of each task in turn; none where experts belong to no task."""
    fusion = job.model.fusion
    if not isinstance(fusion, PLEFusion | AdaTTFusion | AdaTTSpFusion):
        return []
    own = fusion.num_task_experts
    return own if isinstance(own, list) else [own] * len(job.tasks)


def _shared_module(job: JobConfig) -> str:
    return "shared module" if any(task.name == "shared" for task in job.tasks) else "shared"
