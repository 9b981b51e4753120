"""What the rows and columns of a model's dense parameters stand for.

Yesterday's job and today's may differ by a task or a feature. Then parameters that mean the same have other shapes: the
expert bank is stacked over experts, gates choose among all of them, and whatever reads the bottom's output has a column
for every feature. With a label on every index, the part that both jobs know can be moved (`checkpoints/warm_start.py`).

An axis without labels (None) means the same at the same position, in a job of the same widths.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

from torch import nn

from mtlrec import heads, layers
from mtlrec.config import JobConfig
from mtlrec.layers.blocks.experts import ExpertBank, ExpertNorm
from mtlrec.layers.blocks.gates import GateBank
from mtlrec.layers.blocks.level import GatedLevel
from mtlrec.layers.interaction import Bottom
from mtlrec.models.multitask import MultiTaskModel

Labels = Sequence[Hashable] | None
Axes = dict[str, tuple[Labels, ...]]
SHARED = ("module", "shared")
"""The module that belongs to no task; no task can be called that."""


def parameter_axes(model: MultiTaskModel, job: JobConfig) -> Axes:
    """Name -> labels of each axis, for every dense parameter and saved buffer. `model` may be on the meta device."""
    axes: Axes = {name: (None,) * t.dim() for name, t in model.state_dict().items() if name.startswith("over_arch.")}
    bottom = model.over_arch.bottom
    assert isinstance(bottom, Bottom)
    axes |= {f"over_arch.bottom.{name}": labels for name, labels in _bottom(bottom, job).items()}
    axes |= {f"over_arch.heads.{name}": labels for name, labels in _heads(model.over_arch.heads, job).items()}
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
    match fusion:
        case layers.SharedBottom():
            return _bank("experts", fusion.experts, [SHARED], columns)
        case layers.SingleTask():
            return _bank("experts", fusion.experts, tasks, columns)
        case layers.AsymmetricBottom():
            return _bank("experts", fusion.experts, tasks, columns) | _projections(tasks, fusion.output_dim)
        case layers.CrossStitch():
            axes: Axes = {}
            for level, bank in enumerate(fusion.experts):
                assert isinstance(bank, ExpertBank)
                axes |= _bank(f"experts.{level}", bank, tasks, None if level else columns)
                axes[f"stitches.{level}.weight"] = (tasks, tasks)
            return axes
        case layers.CustomizedSharing():
            projections: Axes = {"projections.weight": (tasks, None, None), "projections.bias": (tasks, None)}
            merge = projections if fusion.weights is None else {"weights.weight": (tasks, None)}
            return _bank("experts", fusion.experts, [*tasks, SHARED], columns) | merge
        case layers.MMoE():
            levels = _gated_levels(fusion.levels)
            experts: list[Hashable] = [("expert", i) for i in range(levels[0].experts.num_experts)]
            owners = [experts] * (len(levels) - 1) + [tasks]
            return _levels(levels, owners, experts, columns, columns)
        case layers.PLE() | layers.AdaTTSp() | layers.AdaTT():
            levels = _gated_levels(fusion.levels)
            modules = [*tasks, SHARED]
            counts = levels[0].experts.experts_per_slot
            experts = [(modules[slot], i) for slot, count in enumerate(counts) for i in range(count)]
            return _levels(levels, [modules] * len(levels), experts, columns, None)
    return {}


def _heads(head: nn.Module, job: JobConfig) -> Axes:
    """Towers and logits are stacked over tasks. What a child reads of its parent means nothing under another parent."""
    tasks = [task.name for task in job.tasks]
    axes: Axes = {}
    match head:
        case heads.AITM() | heads.DBMTL():
            axes |= _towers("towers", head.towers, tasks) | _logits("logits", tasks)
        case heads.Independent() | heads.ESMM():
            axes |= _towers("towers.hidden", head.towers.hidden, tasks) | _logits("towers.logits", tasks)
    if isinstance(head, heads.ESCM2) and head.imputations is not None:
        children = [task.name for task in job.tasks if task.given is not None]
        axes |= _towers("imputations.hidden", head.imputations.hidden, children)
        axes |= _logits("imputations.logits", children)
    for task in job.tasks:
        if task.given is None:
            continue
        match head:
            case heads.AITM():
                name = f"transfers.task_{task.name}.hand_on.0.weight"
                axes[name] = (None, _units([task.given], head.state_dict()[name].shape[1]))
            case heads.DBMTL():
                name = f"relations.task_{task.name}.net.0.weight"
                of_parent = head.logits.weight.shape[2]
                own = head.state_dict()[name].shape[1] - of_parent
                axes[name] = (None, [*_units(["own"], own), *_units([("parent", task.given)], of_parent)])
    return axes


def _towers(name: str, hidden: nn.Module, tasks: Sequence[Hashable]) -> Axes:
    return _bank(name, hidden, tasks, None) if isinstance(hidden, ExpertBank) else {}


def _logits(name: str, tasks: Sequence[Hashable]) -> Axes:
    return {f"{name}.weight": (tasks, None, None), f"{name}.bias": (tasks, None)}


def _projections(tasks: list[str], width: int) -> Axes:
    """Asymmetric sharing's. They are named by number: behind a task that came in between, none has a counterpart."""
    axes: Axes = {}
    for i, task in enumerate(tasks[1:]):
        axes[f"projections.{i}.weight"] = (_units([task], width), _units([task, *tasks[: i + 1]], width))
        axes[f"projections.{i}.bias"] = (_units([task], width),)
    return axes


def _gated_levels(levels: nn.ModuleList) -> list[GatedLevel]:
    return [level for level in levels if isinstance(level, GatedLevel)]


def _levels(
    levels: list[GatedLevel],
    owners: Sequence[Sequence[Hashable]],
    experts: Sequence[Hashable],
    columns: Labels,
    selector_columns_above: Labels,
) -> Axes:
    """`owners`: whose the gates of each level are."""
    axes: Axes = {}
    for i, level in enumerate(levels):
        axes |= _bank(f"levels.{i}.experts", level.experts, experts, None if i else columns)
        axes |= _gates(f"levels.{i}.gates", level.gates, owners[i], experts, selector_columns_above if i else columns)
        if level.residual is not None and level.residual.weight is not None:
            axes[f"levels.{i}.residual.weight"] = (experts[: len(level.residual.weight)],)
    return axes


def _bank(name: str, bank: ExpertBank, experts: Sequence[Hashable], columns: Labels) -> Axes:
    axes: Axes = {}
    for i in range(len(bank.layers)):
        axes[f"{name}.layers.{i}.weight"] = (experts, None, None if i else columns)
        axes[f"{name}.layers.{i}.bias"] = (experts, None)
    for i, norm in enumerate(bank.norms or ()):
        assert isinstance(norm, ExpertNorm)
        axes |= {f"{name}.norms.{i}.weight": (experts, None), f"{name}.norms.{i}.bias": (experts, None)}
        if norm.batch_norm is not None:
            units = _units(experts, norm.weight.shape[1])
            axes |= {f"{name}.norms.{i}.batch_norm.running_{what}": (units,) for what in ("mean", "var")}
    return axes


def _units(owners: Sequence[Hashable], width: int) -> list[Hashable]:
    """An axis on which `width` outputs of each owner lie one after another; those of another width are others."""
    return [(owner, width, i) for owner in owners for i in range(width)]


def _gates(
    name: str, gates: GateBank, owners: Sequence[Hashable], experts: Sequence[Hashable], columns: Labels
) -> Axes:
    rows = [(owners[gate], experts[expert]) for gate, seen in enumerate(gates.visible) for expert in seen]
    axes: Axes = {f"{name}.weight": (rows, columns if gates.selector is None else None), f"{name}.bias": (rows,)}
    if gates.selector is not None:
        axes |= _bank(f"{name}.selector", gates.selector, owners[: gates.num_gates], columns)
    return axes
