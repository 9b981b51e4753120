"""`--init-from RUN`: yesterday's weights in today's job, where tasks, features or rows may have been added.

A parameter of the same name and shape is loaded. A table with more rows than before takes the old rows and keeps its
fresh ones behind them (grown). Whatever else differs stays fresh. The report says which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.training.checkpoint import CheckpointError, Checkpoints, load_tensors, saved_shapes


@dataclass
class WarmStart:
    """Names of the parameters that were loaded, grown, left fresh, and those that only the old run has."""

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


def warm_start(model: DistributedModelParallel, run: Path) -> WarmStart:
    """Collective. Loads what fits from the last checkpoint of `run` and reports it."""
    checkpoint = Checkpoints(run).latest()
    if checkpoint is None:
        raise CheckpointError(f"{run}: no complete checkpoint to start from")
    saved = {name.removeprefix("model."): size for name, size in saved_shapes(checkpoint).items()}
    saved = {name: size for name, size in saved.items() if f"model.{name}" in saved_shapes(checkpoint)}
    ours = model.state_dict()
    report = WarmStart(unused=sorted(set(saved) - set(ours)))
    same: dict[str, Tensor | ShardedTensor] = {}
    for name, tensor in ours.items():
        old, new = saved.get(name), tensor.size()
        if old == new:
            same[name] = tensor
            report.loaded.append(name)
        elif old is not None and ".tables." in name and old[1:] == new[1:] and old[0] < new[0]:
            _load_rows(tensor, name, old, checkpoint)
            report.grown.append(f"{name} {old[0]} -> {new[0]} rows")
        else:
            report.fresh.append(name)
    load_tensors({"model": same}, checkpoint)
    return report


def _load_rows(tensor: Tensor | ShardedTensor, name: str, old: torch.Size, checkpoint: Path) -> None:
    """Reads the old table whole, then copies the rows and columns that this rank's shards hold."""
    table = torch.empty(old)
    load_tensors({"model": {name: table}}, checkpoint)
    if not isinstance(tensor, ShardedTensor):
        tensor.detach()[: old[0]].copy_(table)
        return
    for shard in tensor.local_shards():
        row, column = shard.metadata.shard_offsets
        rows, columns = shard.metadata.shard_sizes
        part = table[row : row + rows, column : column + columns]
        shard.tensor.detach()[: part.shape[0]].copy_(part)
