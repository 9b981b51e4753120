"""What a model's gates and experts do, level by level: means over rows, and over ranks.

Shapes: G gates, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlrec.layers import GatedFusion, LevelDiagnostics
from mtlrec.layers.blocks.axes import Owner
from mtlrec.metrics.metric import sum_over_ranks

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
        weight: [G][E], what the experts are weighed with, the level's residual included
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


def levels_of(sums: Mapping[str, LevelSums], fusion: nn.Module, tasks: Sequence[str]) -> list[Level]:
    """Collective. `sums` by the level's module; `fusion` says whose the experts and gates are."""
    in_order = sorted(sums.items(), key=lambda named: int(re.findall(r"\d+", named[0])[-1]))
    return [_level(index, level_sums, fusion, tasks) for index, (_, level_sums) in enumerate(in_order)]


def _level(index: int, sums: LevelSums, fusion: nn.Module, tasks: Sequence[str]) -> Level:
    gate, square, weight, entropy, peaked, norm, zeros = sums.means()
    deviation = (square - gate.square()).clamp(min=0).sqrt()
    num_gates, num_experts = gate.shape
    gates: Sequence[Owner] = ["gate"] * num_gates
    experts: Sequence[Owner] = ["expert"] * num_experts
    if isinstance(fusion, GatedFusion):
        gates, experts = fusion.gate_owners[index], fusion.expert_owners[index]
    has_task_experts = any(isinstance(owner, int) for owner in experts)
    return Level(
        name=f"level {index + 1}",
        gates=names_of(gates, tasks),
        experts=names_of(experts, tasks),
        gate=gate.tolist(),
        deviation=deviation.tolist(),
        weight=weight.tolist(),
        entropy=entropy.tolist(),
        peaked=peaked.tolist(),
        norm=norm.tolist(),
        zeros=zeros.tolist(),
        shared=sum(isinstance(owner, str) for owner in experts) if has_task_experts else 0,
    )


def names_of(owners: Sequence[Owner], tasks: Sequence[str]) -> list[str]:
    """What readers know experts or gates by: their owner's name, with a number where the owner has several.

    Example:
        >>> names_of([0, 1, 1, "shared"], ["click", "buy"])
        ['click', 'buy 1', 'buy 2', 'shared']
    """
    return [
        _name(owner, tasks) + (f" {owners[: index + 1].count(owner)}" if owners.count(owner) > 1 else "")
        for index, owner in enumerate(owners)
    ]


def _name(owner: Owner, tasks: Sequence[str]) -> str:
    if isinstance(owner, int):
        return tasks[owner]
    return f"{owner} module" if owner in tasks else owner
