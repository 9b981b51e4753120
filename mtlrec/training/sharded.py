"""The canonical order: tables on meta -> optimizer in backward -> plan -> shard -> dense optimizer.

Training, evaluation and prediction all get their model here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import check_tasks, read_job_state
from mtlrec.checkpoints.reader import load_tensors
from mtlrec.config import JobConfig, LossConfig
from mtlrec.distributed.plans import Plan
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.distributed.sharding import plan_sharding, shard
from mtlrec.losses import MultiTaskLoss
from mtlrec.models.build import build_train_module
from mtlrec.models.multitask import MultiTaskModel
from mtlrec.models.train_module import TrainModule
from mtlrec.training.optim import fuse_sparse_optimizer


@dataclass
class ShardedModel:
    """`module` is the sharded train module, `loss` the one inside it, `checkpoint` where the weights came from, and
    `id_fingerprints` what the ids of its features hang on."""

    module: DistributedModelParallel
    plan: Plan
    loss: MultiTaskLoss
    checkpoint: Path | None = None
    id_fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def network(self) -> MultiTaskModel:
        """The model without its loss, tables sharded."""
        return self.module.module.model

    def state(self) -> dict[str, Any]:
        """A copy: `DistributedModelParallel.load_state_dict` renames the keys of the dict that it is given."""
        return dict(self.module.state_dict())

    def average_running_statistics(self) -> None:
        """Collective. Gives every rank the mean of all ranks' batch norm statistics.

        Each rank keeps those of its own rows, since `DistributedModelParallel` wraps the dense part in a DDP that
        broadcasts no buffers. Before this, ranks would evaluate with different models, and a checkpoint would hold one
        rank's means and perhaps another's variances. Moving averages are linear, so how often it is called matters not.
        """
        for module in self.module.modules():
            if isinstance(module, nn.BatchNorm1d):
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    dist.all_reduce(statistic)
                    statistic /= dist.get_world_size()


def build_sharded(job: JobConfig, ranks: Ranks) -> ShardedModel:
    """Collective. Dense weights start equal on every rank and world size, tables from the rank's own seed."""
    module = unsharded(job, ranks.device)
    plan = plan_sharding(module, job, ranks)
    described = Plan.of(plan, ranks.world_size)
    return ShardedModel(shard(module, plan, job, ranks), described, module.loss.multitask)


def unsharded(job: JobConfig, device: torch.device) -> TrainModule:
    """Tables on meta, which take no memory, with their optimizer in backward; the rest drawn from the job's seed."""
    torch.manual_seed(job.train.seed)
    module = build_train_module(job)
    fuse_sparse_optimizer(module.model.sparse_arch, job, device)
    return module


def load_run(job: JobConfig, run: Path, ranks: Ranks, which: str = "last") -> ShardedModel:
    """Collective. A checkpoint's weights, whatever the world size and plan that saved them.

    Args:
        which: last, best or the number of a step

    How training weighed the tasks is left behind: what a balancer needs need not be installed to evaluate.
    """
    checkpoint = on_first_rank(ranks, lambda: Checkpoints(run, keep_best=job.keep_best).named(which))
    saved = read_job_state(checkpoint)
    check_tasks(checkpoint, saved, [task.name for task in job.tasks])
    sharding = job.sharding.model_copy(update={"plan": None})  # it was for the ranks that trained
    model = build_sharded(job.model_copy(update={"loss": LossConfig(), "sharding": sharding}), ranks)
    state = model.state()
    load_tensors({"model": state}, checkpoint)
    model.module.load_state_dict(state)
    model.checkpoint, model.id_fingerprints = checkpoint, saved.id_fingerprints
    return model


def autocast(job: JobConfig, device: torch.device) -> AbstractContextManager[Any]:
    """How the job's model is run, in training as in evaluation and prediction."""
    if job.train.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
