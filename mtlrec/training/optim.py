"""Optimizers and learning rates.

The tables' optimizer is fused into FBGEMM's backward and must be attached before sharding. A table that the plan
replicates (data-parallel) never gets the fused one, so it gets the torch optimizer of the same arithmetic; sharded and
unsharded training then agree.

Learning rates are a function of the step alone: nothing to save, nothing that restarts on resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from mtlrec.compat.fbgemm.optimizer_states import ColumnRanges, columns_of, fused_states, replicated_states
from mtlrec.compat.optimizer_in_backward import apply_optimizer_in_backward
from mtlrec.config import TABLE_OPTIMIZERS, DenseOptimizer, JobConfig, Optimizer, TableOptimizer
from mtlrec.errors import ConfigError
from mtlrec.models.sparse_arch import SparseArch

TABLE_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
"""What TorchRec takes for FBGEMM's optimizer, and what a replicated table is updated by."""
DENSE_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def fuse_sparse_optimizer(sparse_arch: SparseArch, job: JobConfig, device: torch.device) -> None:
    """Before sharding: ask for the job's optimizer inside the backward of every table.

    What only FBGEMM knows (decay, clipping, betas) is told to the sharder: `distributed/sharding.py`.

    Raises ConfigError for what FBGEMM does not have on the device.
    """
    sparse = job.optim.sparse
    if device.type not in sparse.fused_on:
        usable = ", ".join(kind for kind, other in TABLE_OPTIMIZERS.items() if device.type in other.fused_on)
        raise ConfigError(f"optim.sparse.kind = {sparse.kind!r}: FBGEMM has none on {device.type}. Use {usable}.")
    if getattr(sparse, "weight_decay", 0) and device.type not in sparse.decays_on:
        raise ConfigError(f"optim.sparse.weight_decay: FBGEMM has none on {device.type}. Set it to 0.")
    for table, parameter in sparse_arch.table_parameters():
        options = _table_options(sparse) | {"lr": job.tables[table].lr or sparse.lr}
        apply_optimizer_in_backward(TABLE_CLASSES[sparse.kind], [parameter], options)


def _table_options(sparse: TableOptimizer) -> dict[str, Any]:
    """Those of the torch class that its twin in FBGEMM has under the same name."""
    return {"lr": sparse.lr} | ({"eps": sparse.eps} if hasattr(sparse, "eps") else {})


def dense_optimizer(dense: DenseOptimizer, parameters: Mapping[str, nn.Parameter], kept: set[int]) -> KeyedOptimizer:
    """The optimizer of everything but tables. Weight decay spares the parameters whose ids are `kept`."""
    options = dense.model_dump(exclude={"kind", "clip_norm", *Optimizer.model_fields} - {"lr"})

    def make(params: list[Any]) -> torch.optim.Optimizer:
        if not dense.weight_decay:
            return DENSE_CLASSES[dense.kind](params, **options, fused=True)
        decayed = [p for p in params if id(p) not in kept]
        spared = {"params": [p for p in params if id(p) in kept], "weight_decay": 0.0}
        return DENSE_CLASSES[dense.kind]([{"params": decayed}, spared], **options, fused=True)

    return KeyedOptimizerWrapper(parameters, make)


def undecayed(model: nn.Module) -> set[int]:
    """Ids of the parameters that weight decay leaves alone: biases, single rows of numbers, and what a module names in
    its `no_decay`: norms, weights that mix outputs, what balances the tasks."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or parameter.dim() < 2 or name in getattr(module, "no_decay", ())
    }


class Optimizers:
    """All of a sharded model's optimizers as one, with their learning rates.

    `combined` is what the pipeline steps; it holds the fused optimizer too, because a changed learning rate reaches
    FBGEMM only through that optimizer's own `zero_grad`.
    """

    def __init__(self, model: DistributedModelParallel, job: JobConfig, total_steps: int) -> None:
        self.total_steps = total_steps
        self._sparse, self._dense = job.optim.sparse, job.optim.dense
        replicated: dict[str, nn.Parameter] = {}
        dense: dict[str, nn.Parameter] = {}
        self._table_of: Callable[[str], str | None] = model.module.model.sparse_arch.table_of
        for name, parameter in in_backward_optimizer_filter(model.named_parameters()):
            (dense if self._table_of(name) is None else replicated)[name] = parameter
        self.fused = model.fused_optimizer
        self.replicated = self._replicated(replicated) if replicated else None
        self.dense = dense_optimizer(self._dense, dense, undecayed(model))
        parts = [("fused", self.fused), ("dense", self._clipped())]
        if self.replicated is not None:
            parts.append(("replicated", self.replicated))
        self.combined = CombinedOptimizer(parts)
        self._groups = [(group, _factor(job, tables)) for group, tables in self._groups_of_tables()]

    def _clipped(self) -> KeyedOptimizer:
        if self._dense.clip_norm is None:
            return self.dense
        return GradientClippingOptimizer(self.dense, clipping=GradientClipping.NORM, max_gradient=self._dense.clip_norm)

    def _replicated(self, parameters: Mapping[str, nn.Parameter]) -> KeyedOptimizer:
        """A group for each table, which may have a learning rate of its own."""
        kind, options = TABLE_CLASSES[self._sparse.kind], _table_options(self._sparse)
        return KeyedOptimizerWrapper(parameters, lambda params: kind([{"params": [p]} for p in params], **options))

    def _groups_of_tables(self) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """The parameter groups of all tables, and the names of the tables in each."""
        for optimizer in filter(None, (self.fused, self.replicated)):
            names = {id(table): self._table_of(str(key)) for key, table in optimizer.params.items()}
            for group in optimizer.param_groups:
                yield group, [name for table in group["params"] if (name := names[id(table)]) is not None]

    def set_learning_rates(self, step: int) -> None:
        """For the step with this number (from 0); call it before the step."""
        sparse = learning_rate(self._sparse, step, self.total_steps)
        dense = learning_rate(self._dense, step, self.total_steps)
        for group, factor in self._groups:
            group["lr"] = sparse * factor
        for group in self.dense.param_groups:
            group["lr"] = dense

    def state(self) -> dict[str, Any]:
        """The state tensors themselves, to be saved or loaded in place: {"dense": ..., "tables": ...} by parameter,
        without what has none (SGD): DCP would look for an empty mapping in vain.

        A table's state has the same name and rank whether the plan shards or replicates the table, so that a
        checkpoint fits any plan (`compat/fbgemm/optimizer_states.py`).
        """
        tables = fused_states(self.fused) | replicated_states(self._state_of(self.replicated))
        parts = {"dense": self._state_of(self.dense), "tables": tables}
        some = {part: {name: state for name, state in states.items() if state} for part, states in parts.items()}
        return {part: states for part, states in some.items() if states}

    def columns(self) -> dict[str, ColumnRanges]:
        """Of every table, by parameter: how the plan cuts a row."""
        tables: dict[Any, Any] = {**self.fused.params, **(self.replicated.params if self.replicated else {})}
        return {str(parameter): columns_of(table) for parameter, table in tables.items()}

    def materialise(self) -> None:
        """Makes the state that torch's optimizers make lazily, by a step on zero gradients. Load the model after it."""
        for optimizer in filter(None, (self.dense, self.replicated)):
            optimizer.init_state()
            optimizer.zero_grad()

    def set_steps_done(self, step: int) -> None:
        """After loading: what is counted rather than saved, for FBGEMM's Adam and torch's Adagrad."""
        self.fused.set_optimizer_step(step)
        for state in self._state_of(self.replicated).values():
            if "step" in state:
                state["step"].fill_(step)

    @staticmethod
    def _state_of(optimizer: KeyedOptimizer | None) -> dict[str, dict[str, torch.Tensor]]:
        return {} if optimizer is None else {name: dict(s) for name, s in optimizer.state_dict()["state"].items()}


def _factor(job: JobConfig, tables: Sequence[str]) -> float:
    """What the learning rate of `optim.sparse` is multiplied with for a group of tables, which have one rate."""
    rates = {job.tables[table].lr or job.optim.sparse.lr for table in tables}
    assert len(rates) == 1, f"tables of several learning rates in one group: {tables}"
    return rates.pop() / job.optim.sparse.lr


def learning_rate(schedule: Optimizer, step: int, total_steps: int) -> float:
    """lr of the step numbered `step` from 0: warm-up reaches lr at step `warmup_steps`, decay ends at the last step."""
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / (schedule.warmup_steps + 1)
    if schedule.decay == "constant":
        return schedule.lr
    progress = (step - schedule.warmup_steps) / max(total_steps - 1 - schedule.warmup_steps, 1)
    progress = min(progress, 1.0)
    shape = 1 - progress if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.lr * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape)
