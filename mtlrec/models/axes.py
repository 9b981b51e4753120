"""What the rows and columns of a model's dense parameters stand for.

Yesterday's job and today's may differ by a task or a feature. Then parameters that mean the same have other shapes: the
expert bank is stacked over experts, gates choose among all of them, and whatever reads the bottom's output has a column
for every feature. With a label on every index, the part that both jobs know can be moved (`training/warm_start.py`).

An axis without labels (None) means the same at the same position, in a job of the same widths.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

from torch import nn

from mtlrec import layers
from mtlrec.config import JobConfig
from mtlrec.layers.experts import ExpertBank
from mtlrec.layers.gates import GateBank
from mtlrec.layers.interaction import Bottom
from mtlrec.models.multitask import MultiTaskModel

Labels = Sequence[Hashable] | None
Axes = dict[str, tuple[Labels, ...]]
SHARED = ("module", "shared")
"""PLE's shared module; no task can be called that."""


def parameter_axes(model: MultiTaskModel, job: JobConfig) -> Axes:
    """Parameter name -> labels of each of its axes, for every dense parameter. `model` may be on the meta device."""
    axes: Axes = {name: (None,) * p.dim() for name, p in model.named_parameters() if name.startswith("over_arch.")}
    bottom = model.over_arch.bottom
    assert isinstance(bottom, Bottom)
    axes |= {f"over_arch.bottom.{name}": labels for name, labels in _bottom(bottom, job).items()}
    fusion = _fusion(model.over_arch.fusion, bottom_columns(bottom, job), [task.name for task in job.tasks])
    return axes | {f"over_arch.fusion.{name}": labels for name, labels in fusion.items()}


def bottom_columns(bottom: Bottom, job: JobConfig) -> Labels:
    """Labels of the bottom's output."""
    match bottom:
        case layers.Concat():
            return None if bottom.mlp.net else input_columns(job)
        case layers.Cross():
            return input_columns(job)
        case layers.Dot():
            dense: list[Hashable] = []
            vectors = [feature.name for feature in job.features.sparse]
            if job.features.dense:
                dense = [("dense vector", i) for i in range(bottom.embedding_dims[0])]
                vectors = ["dense vector", *vectors]
            return [*dense, *combinations(vectors, 2)]
    return None


def input_columns(job: JobConfig) -> list[Hashable]:
    """Dense features, then every embedding's dimensions: what a bottom lays side by side."""
    columns: list[Hashable] = [feature.name for feature in job.features.dense]
    for feature in job.features.sparse:
        columns += [(feature.name, i) for i in range(job.tables[feature.table].dim)]
    return columns


def _bottom(bottom: Bottom, job: JobConfig) -> Axes:
    columns = input_columns(job)
    match bottom:
        case layers.Concat() if bottom.mlp.net:
            return {"mlp.net.0.weight": (None, columns)}
        case layers.Dot() if bottom.dense_mlp is not None:
            first = "dense_mlp.net.0.weight" if bottom.dense_mlp.net else "dense_projection.weight"
            return {first: (None, [feature.name for feature in job.features.dense])}
        case layers.Cross():
            axes: Axes = {}
            for i, cross in enumerate(bottom.crosses):
                if len(list(cross.children())) == 2:  # low rank: V, then U
                    axes[f"crosses.{i}.0.weight"] = (None, columns)
                    axes |= {f"crosses.{i}.1.weight": (columns, None), f"crosses.{i}.1.bias": (columns,)}
                else:
                    axes |= {f"crosses.{i}.weight": (columns, columns), f"crosses.{i}.bias": (columns,)}
            return axes
    return {}


def _fusion(fusion: object, columns: Labels, tasks: list[str]) -> Axes:
    axes: Axes = {}
    owners: Sequence[Hashable]
    match fusion:
        case layers.SharedBottom():
            return {"mlp.net.0.weight": (None, columns)}
        case layers.SingleTask():
            return _bank("experts", fusion.experts, tasks, columns)
        case layers.MMoE():
            levels = _levels(fusion.experts, fusion.gates)
            experts: list[Hashable] = [("expert", i) for i in range(levels[0][0].num_experts)]
            for level, (bank, gates) in enumerate(levels):
                axes |= _bank(f"experts.{level}", bank, experts, None if level else columns)
                owners = tasks if level == len(levels) - 1 else experts
                axes |= _gates(f"gates.{level}", gates, owners, experts, columns)
        case layers.PLE() | layers.AdaTTSp():
            levels = _levels(fusion.experts, fusion.gates)
            owners = [*tasks, SHARED]
            experts = [
                (owners[slot], i) for slot, count in enumerate(levels[0][0].experts_per_slot) for i in range(count)
            ]
            for level, (bank, gates) in enumerate(levels):
                axes |= _bank(f"experts.{level}", bank, experts, None if level else columns)
                axes |= _gates(f"gates.{level}", gates, owners, experts, None if level else columns)
                axes[f"residuals.{level}.weight"] = (tasks, None)  # of AdaTT with several experts per task
    return axes


def _levels(experts: nn.ModuleList, gates: nn.ModuleList) -> list[tuple[ExpertBank, GateBank]]:
    return [
        (b, g) for b, g in zip(experts, gates, strict=True) if isinstance(b, ExpertBank) and isinstance(g, GateBank)
    ]


def _bank(name: str, bank: ExpertBank, experts: Sequence[Hashable], columns: Labels) -> Axes:
    axes: Axes = {}
    for i in range(len(bank.layers)):
        axes[f"{name}.layers.{i}.weight"] = (experts, None, None if i else columns)
        axes[f"{name}.layers.{i}.bias"] = (experts, None)
    return axes


def _gates(
    name: str, gates: GateBank, owners: Sequence[Hashable], experts: Sequence[Hashable], columns: Labels
) -> Axes:
    rows = [(owners[gate], experts[expert]) for gate, seen in enumerate(gates.visible) for expert in seen]
    axes: Axes = {f"{name}.weight": (rows, columns if gates.selector is None else None), f"{name}.bias": (rows,)}
    if gates.selector is not None:
        axes |= _bank(f"{name}.selector", gates.selector, owners[: gates.num_gates], columns)
    return axes
