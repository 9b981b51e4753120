"""Optimizers and learning rates.

The tables' optimizer is fused into FBGEMM's backward and must be attached before sharding. A table that the plan
replicates (data-parallel) never gets the fused one, so it gets the torch optimizer of the same arithmetic; sharded and
unsharded training then agree.

Learning rates are a function of the step alone: nothing to save, nothing that restarts on resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from mtlrec.compat.fbgemm.cpu_kernels import has_fused_adam
from mtlrec.compat.fbgemm.optimizer_states import ColumnRanges, columns_of, fused_states, replicated_states
from mtlrec.compat.optimizer_in_backward import apply_optimizer_in_backward
from mtlrec.config import DenseOptim, JobConfig, Schedule, SparseOptim
from mtlrec.errors import ConfigError
from mtlrec.models.embeddings import is_table_parameter

EPS = 1e-8
"""FBGEMM's and torch's defaults differ; one value for both keeps replicated and sharded tables equal."""


def _sparse_optimizer(config: SparseOptim) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    match config.kind:
        case "rowwise_adagrad":
            return RowWiseAdagrad, {"lr": config.lr, "eps": EPS}
        case "adagrad":
            return torch.optim.Adagrad, {"lr": config.lr, "eps": EPS}
        case "adam":
            return torch.optim.Adam, {"lr": config.lr, "eps": EPS}
        case "sgd":
            return torch.optim.SGD, {"lr": config.lr}


def _dense_optimizer(config: DenseOptim, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    match config.kind:
        case "adam":
            return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def fuse_sparse_optimizer(tables: nn.Module, config: SparseOptim, device: torch.device) -> None:
    """Before sharding: asks for `config` inside the backward of every table.

    Raises ConfigError for Adam on CPU, which FBGEMM does not have.
    """
    if config.kind == "adam" and not has_fused_adam(device.type):
        raise ConfigError("optim.sparse.kind = 'adam': FBGEMM has no Adam on CPU; use rowwise_adagrad, adagrad or sgd")
    kind, options = _sparse_optimizer(config)
    apply_optimizer_in_backward(kind, tables.parameters(), options)


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
        for name, parameter in in_backward_optimizer_filter(model.named_parameters()):
            (replicated if is_table_parameter(name) else dense)[name] = parameter
        kind, options = _sparse_optimizer(self._sparse)
        self.fused = model.fused_optimizer
        self.replicated = KeyedOptimizerWrapper(replicated, lambda p: kind(p, **options)) if replicated else None
        self.dense = KeyedOptimizerWrapper(dense, lambda p: _dense_optimizer(self._dense, p))
        parts: list[tuple[str, KeyedOptimizer]] = [("fused", self.fused), ("dense", self._clipped())]
        if self.replicated is not None:
            parts.append(("replicated", self.replicated))
        self.combined = CombinedOptimizer(parts)

    def _clipped(self) -> KeyedOptimizer:
        if self._dense.clip_norm is None:
            return self.dense
        return GradientClippingOptimizer(self.dense, clipping=GradientClipping.NORM, max_gradient=self._dense.clip_norm)

    def set_learning_rates(self, step: int) -> None:
        """For the step with this number (from 0); call it before the step."""
        sparse = learning_rate(self._sparse, step, self.total_steps)
        dense = learning_rate(self._dense, step, self.total_steps)
        groups = [(group, sparse) for group in self.fused.param_groups]
        groups += [(group, sparse) for group in (self.replicated.param_groups if self.replicated else [])]
        groups += [(group, dense) for group in self.dense.param_groups]
        for group, rate in groups:
            group["lr"] = rate

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


def learning_rate(schedule: Schedule, step: int, total_steps: int) -> float:
    """lr of the step numbered `step` from 0: warm-up reaches lr at step `warmup_steps`, decay ends at the last step."""
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / (schedule.warmup_steps + 1)
    if schedule.decay == "constant":
        return schedule.lr
    progress = (step - schedule.warmup_steps) / max(total_steps - 1 - schedule.warmup_steps, 1)
    progress = min(progress, 1.0)
    shape = 1 - progress if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.lr * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape)
