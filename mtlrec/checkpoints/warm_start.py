"""`--init-from RUN`: yesterday's weights in today's job, where tasks, features or rows may have been added.

A table with more rows than before takes the old rows and keeps its fresh ones behind them, whatever collection had it
before. A dense parameter takes every entry that means the same in both jobs (`models/axes.py`): with a task more, the
other tasks' experts and gates stay; with a feature more, the other features' columns. What has no counterpart stays
fresh. The report says which is which.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import read_job_state
from mtlrec.checkpoints.reader import load_tensors, saved_shapes
from mtlrec.compat.dcp.sharded_tensor import Shard, ShardedTensor, reshard_like
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.errors import CheckpointError
from mtlrec.layers.blocks.axes import Axes, Labels
from mtlrec.models.axes import parameter_axes
from mtlrec.models.build import build_model

MODEL = "model."
"""Stands before the model's names in the train module's state, and before that state's names in a checkpoint."""


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


def warm_start(model: DistributedModelParallel, job: JobConfig, run: Path, ranks: Ranks) -> WarmStart:
    """Collective. Loads what fits from the last checkpoint of `run` and reports it.

    One read fills everything: equal shapes and the old rows of tables in place, on the rank that holds them; other
    dense parameters beside the model, to be moved from there.
    """
    checkpoint = on_first_rank(ranks, Checkpoints(run).latest)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no complete checkpoint to start from")
    prefix = MODEL + MODEL  # a balancer's state, in the loss, is the old run's own
    saved = {
        name.removeprefix(MODEL): size for name, size in saved_shapes(checkpoint).items() if name.startswith(prefix)
    }
    (old_axes, old_tables), (new_axes, new_tables) = _named(_job_of(checkpoint)), _named(job)
    ours = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(MODEL)}
    table_of = {name: table for table, name in new_tables.items()}
    saved_as = {name: old_tables.get(table_of[name], name) if name in table_of else name for name in ours}
    report = WarmStart(unused=sorted(set(saved) - set(saved_as.values())))
    wanted: dict[str, Tensor | ShardedTensor] = {}
    for name, tensor in ours.items():
        before = saved_as[name]
        if before not in saved:
            report.fresh.append(name)
        elif name not in table_of:
            wanted[before] = torch.empty(saved[before], dtype=tensor.dtype, device=tensor.device)
        elif _fits(name, tensor, saved[before], report):
            wanted[before] = _first_rows(tensor, saved[before][0])
    load_tensors({"model": wanted}, checkpoint)
    for name in (name for name in ours if name in wanted and name not in table_of):
        filled = transplant(wanted[name], old_axes[name], ours[name].detach(), new_axes[name])
        group = {0.0: report.fresh, 1.0: report.loaded}.get(filled, report.grown)
        group.append(name if filled in (0.0, 1.0) else f"{name} ({filled:.0%})")
    return report


def _job_of(checkpoint: Path) -> JobConfig:
    try:
        return JobConfig.model_validate(read_job_state(checkpoint).config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{checkpoint}: its config is of another version ({where}: {first['msg']})") from None


def _named(job: JobConfig) -> tuple[Axes, dict[str, str]]:
    """The axes of the dense parameters by their names, and the names of the tables' parameters by table."""
    with torch.device("meta"):
        model = build_model(job)
    axes = {MODEL + name: labels for name, labels in parameter_axes(model, job).items()}
    tables = ((model.sparse_arch.table_of(name), MODEL + name) for name in model.state_dict())
    return axes, {table: name for table, name in tables if table is not None}


def _fits(name: str, tensor: Tensor | ShardedTensor, old: torch.Size, report: WarmStart) -> bool:
    """A table of the same size, or with rows to come, is filled in place as far as the old one goes."""
    new = tensor.size()
    if old[1] != new[1] or old[0] > new[0]:
        report.fresh.append(f"{name} (was {old[0]} x {old[1]}, is {new[0]} x {new[1]})")
        return False
    if old == new:
        report.loaded.append(name)
    else:
        report.grown.append(f"{name} ({old[0]} -> {new[0]} rows)")
    return True


def _first_rows(tensor: Tensor | ShardedTensor, rows: int) -> Tensor | ShardedTensor:
    """A view of the table's first rows, sharded as the table is; shards that begin behind them are left out."""
    if not isinstance(tensor, ShardedTensor):
        return tensor.detach()[:rows]
    if tensor.size()[0] == rows:
        return tensor
    metadata = copy.deepcopy(tensor.metadata())
    metadata.size = torch.Size([rows, metadata.size[1]])
    metadata.shards_metadata = [shard for shard in metadata.shards_metadata if shard.shard_offsets[0] < rows]
    for shard in metadata.shards_metadata:
        shard.shard_sizes[0] = min(shard.shard_sizes[0], rows - shard.shard_offsets[0])
    by_offset = {tuple(shard.shard_offsets): shard for shard in metadata.shards_metadata}
    local = [
        Shard(shard.tensor.detach()[: by_offset[offset].shard_sizes[0]], by_offset[offset])
        for shard in tensor.local_shards()
        if (offset := tuple(shard.metadata.shard_offsets)) in by_offset
    ]
    return reshard_like(tensor, local, metadata)


def transplant(old: Tensor, old_labels: Sequence[Labels], new: Tensor, new_labels: Sequence[Labels]) -> float:
    """Copies the entries of `old` whose labels `new` has too; returns the share of `new` that was filled."""
    old_at, new_at = [], []
    for axis, (ours, theirs) in enumerate(zip(new_labels, old_labels, strict=True)):
        matches = _matches(theirs, old.shape[axis], ours, new.shape[axis])
        old_at.append(torch.tensor([match[0] for match in matches], dtype=torch.long, device=old.device))
        new_at.append(torch.tensor([match[1] for match in matches], dtype=torch.long, device=new.device))
    new[_grid(new_at)] = old[_grid(old_at)]
    filled = 1.0
    for axis, at in enumerate(new_at):
        filled *= len(at) / new.shape[axis]
    return filled


def _grid(at: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One index per axis, shaped to broadcast: what all of them select together, without the grid written out."""
    return tuple(index.view([-1 if axis == i else 1 for i in range(len(at))]) for axis, index in enumerate(at))


def _matches(theirs: Labels, old_size: int, ours: Labels, new_size: int) -> list[tuple[int, int]]:
    """(old index, new index) of what means the same; none for an unlabeled axis that changed its size."""
    if theirs is None or ours is None:
        return [(i, i) for i in range(new_size)] if theirs is ours and old_size == new_size else []
    where = {label: i for i, label in enumerate(theirs)}
    return [(where[label], i) for i, label in enumerate(ours) if label in where]
