"""What training holds in memory, by part."""

from __future__ import annotations

import resource

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.batch import Batch
from mtlrec.compat.dcp.sharded_tensor import ShardedTensor
from mtlrec.training.step import TrainingStep


def memory_gb(take_step: TrainingStep, batches: int, batch: Batch) -> dict[str, float]:
    """Of this rank, in 1e9 bytes: what is held from step to step, and the most that the process has held until now.

    Args:
        take_step: after a step, when gradients and the optimizers' states are there
        batches: that wait in host memory
        batch: one of them
    """
    device, state = take_step.ranks.device, take_step.optimizers.state()
    parameters = dict(take_step.model.module.named_parameters())
    table_of = take_step.model.network.sparse_arch.table_of
    dense = {name: p for name, p in parameters.items() if table_of(name) is None}
    tables = [p for name, p in parameters.items() if name not in dense]
    states = {part: _bytes(state.get(part, {})) for part in ("tables", "dense")}
    parts = {
        "tables": sum(p.nbytes for p in tables),
        "tables' optimizer": states["tables"],
        "replicated tables' gradients": sum(p.grad.nbytes for p in tables if p.grad is not None),
        "dense parameters": sum(p.nbytes for p in dense.values()),
        "dense gradients": sum(p.grad.nbytes for p in dense.values() if p.grad is not None),
        "dense optimizer": states["dense"],
        "batches, of the host": batches * _bytes(batch),
    }
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {name: size / 1e9 for name, size in (parts | {"peak of the process": peak}).items()}


def _bytes(held: object) -> int:
    """Of the tensors in mappings, lists, sharded tensors and batches; a shard counts where it lies."""
    match held:
        case ShardedTensor():
            return sum(shard.tensor.nbytes for shard in held.local_shards())
        case torch.Tensor():
            return held.nbytes
        case dict():
            return sum(map(_bytes, held.values()))
        case list() | tuple():
            return sum(map(_bytes, held))
        case Batch():
            labels = [held.targets, held.in_space, held.entire_space, held.sample_weights]
            return _bytes([held.dense, held.sparse, *labels, held.row_mask, held.group_ids])
        case KeyedJaggedTensor():
            return _bytes([held.values(), held.lengths(), held.weights_or_none()])
    return 0
