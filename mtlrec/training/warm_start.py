"""`--init-from RUN`: yesterday's weights in today's job, where tasks, features or rows may have been added.

A table with more rows than before takes the old rows and keeps its fresh ones behind them. A dense parameter takes
every entry that means the same in both jobs (`models/axes.py`): with a task more, the other tasks' experts and gates
stay; with a feature more, the other features' columns. What has no counterpart stays fresh. The report says which is
which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.config import JobConfig
from mtlrec.models.axes import Axes, Labels, parameter_axes
from mtlrec.models.build import build_model
from mtlrec.training.checkpoint import CheckpointError, Checkpoints, load_tensors, read_job_state, saved_shapes

MODEL = "model."
"""What the train module's state puts before the model's names."""


@dataclass
class WarmStart:
    """Names of the parameters that were loaded whole, grown from smaller ones, left fresh, and the old run's unused."""

    loaded: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        for title, names in (("grown", self.grown), ("fresh", self.fresh), ("unused", self.unused)):
            if names:
                lines.append(f"{title}: {', '.join(names)}")
        return "; ".join(lines)


def warm_start(model: DistributedModelParallel, job: JobConfig, run: Path) -> WarmStart:
    """Collective. Loads what fits from the last checkpoint of `run` and reports it."""
    checkpoint = Checkpoints(run).latest()
    if checkpoint is None:
        raise CheckpointError(f"{run}: no complete checkpoint to start from")
    saved = {name.removeprefix("model."): size for name, size in saved_shapes(checkpoint).items() if _is_model(name)}
    old_axes, new_axes = _axes(JobConfig.model_validate(read_job_state(checkpoint).config)), _axes(job)
    ours = model.state_dict()
    report = WarmStart(unused=sorted(set(saved) - set(ours)))
    for name, tensor in ours.items():
        if name not in saved:
            report.fresh.append(name)
        elif ".tables." in name:
            _take_rows(tensor, name, saved[name], checkpoint, report)
        else:
            old = torch.empty(saved[name], device=tensor.device)
            load_tensors({"model": {name: old}}, checkpoint)
            filled = transplant(old, old_axes[name], tensor.detach(), new_axes[name])
            group = {0.0: report.fresh, 1.0: report.loaded}.get(filled, report.grown)
            group.append(name if filled in (0.0, 1.0) else f"{name} ({filled:.0%})")
    return report


def _is_model(name: str) -> bool:
    return name.startswith("model.")


def _axes(job: JobConfig) -> Axes:
    with torch.device("meta"):
        return {MODEL + name: labels for name, labels in parameter_axes(build_model(job), job).items()}


def transplant(old: Tensor, old_labels: Sequence[Labels], new: Tensor, new_labels: Sequence[Labels]) -> float:
    """Copies the entries of `old` whose labels `new` has too; returns the share of `new` that was filled."""
    old_at, new_at = [], []
    for axis, (ours, theirs) in enumerate(zip(new_labels, old_labels, strict=True)):
        matches = _matches(theirs, old.shape[axis], ours, new.shape[axis])
        old_at.append(torch.tensor([match[0] for match in matches], dtype=torch.long, device=old.device))
        new_at.append(torch.tensor([match[1] for match in matches], dtype=torch.long, device=new.device))
    new[torch.meshgrid(*new_at, indexing="ij")] = old[torch.meshgrid(*old_at, indexing="ij")]
    filled = 1.0
    for axis, at in enumerate(new_at):
        filled *= len(at) / new.shape[axis]
    return filled


def _matches(theirs: Labels, old_size: int, ours: Labels, new_size: int) -> list[tuple[int, int]]:
    """(old index, new index) of what means the same; none for an unlabelled axis that changed its size."""
    if theirs is None or ours is None:
        return [(i, i) for i in range(new_size)] if theirs is ours and old_size == new_size else []
    where = {label: i for i, label in enumerate(theirs)}
    return [(where[label], i) for i, label in enumerate(ours) if label in where]


def _take_rows(tensor: Tensor | ShardedTensor, name: str, old: torch.Size, checkpoint: Path, report: WarmStart) -> None:
    """A table of the same size is loaded in place; a smaller one is read whole and its rows copied to their shards."""
    new = tensor.size()
    if old == new:
        load_tensors({"model": {name: tensor}}, checkpoint)
        report.loaded.append(name)
    elif old[1] != new[1] or old[0] > new[0]:
        report.fresh.append(f"{name} (was {old[0]} x {old[1]}, is {new[0]} x {new[1]})")
    else:
        table = torch.empty(old)
        load_tensors({"model": {name: table}}, checkpoint)
        _copy_rows(table, tensor)
        report.grown.append(f"{name} ({old[0]} -> {new[0]} rows)")


def _copy_rows(table: Tensor, tensor: Tensor | ShardedTensor) -> None:
    if not isinstance(tensor, ShardedTensor):
        tensor.detach()[: table.shape[0]].copy_(table)
        return
    for shard in tensor.local_shards():
        row, column = shard.metadata.shard_offsets
        rows, columns = shard.metadata.shard_sizes
        part = table[row : row + rows, column : column + columns]
        shard.tensor.detach()[: part.shape[0]].copy_(part)
