"""From the config to modules: the one place where a kind becomes a class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtlrec.config import JobConfig
from mtlrec.config.kinds.family import located
from mtlrec.errors import ConfigError, LocatedError
from mtlrec.layers import FusionLayer
from mtlrec.losses import MultiTaskLoss, TaskLosses
from mtlrec.models.balancing import build_balancing
from mtlrec.models.multitask import MultiTaskModel, OverArch, SlotInputs
from mtlrec.models.sparse_arch import SparseArch
from mtlrec.models.train_module import TrainModule


def build_model(job: JobConfig, table_device: torch.device | None = None) -> MultiTaskModel:
    """The whole model. By default its tables are on meta, to be made where they are sharded; the rest is real."""
    with config_errors("model.bottom"):
        bottom = job.model.bottom.build(**job.bottom_arguments)
    with config_errors("model.fusion"):
        fusion = job.model.fusion.build(input_dim=bottom.output_dim, num_tasks=len(job.tasks))
    with config_errors("model.heads"):
        heads = job.model.heads.build(**job.head_arguments, input_dim=fusion.output_dim)
        if any(task.prior is not None for task in job.tasks):
            job.start(heads)
    over_arch = OverArch(
        inputs=build_slot_inputs(job, fusion),
        bottom=bottom,
        fusion=fusion,
        heads=heads,
    )
    sparse_arch = SparseArch(job.features, job.tables, table_device or torch.device("meta"))
    return MultiTaskModel(sparse_arch, over_arch)


def build_train_module(job: JobConfig, table_device: torch.device | None = None) -> TrainModule:
    model = build_model(job, table_device)
    with config_errors("tasks"):
        loss = MultiTaskLoss(
            losses=[task.build() for task in job.tasks],
            weights=[task.weight for task in job.tasks],
            balancing=build_balancing(job.loss.weighting, len(job.tasks)),
            add_terms=model.over_arch.heads.add_terms,
        )
    return TrainModule(model, loss)


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn a constructor's ValueError into a ConfigError that names the key."""
    try:
        with located(tuple(key.split("."))):
            yield
    except LocatedError as error:
        raise ConfigError(f"{key}: {error}") from error


def build_task_losses(job: JobConfig) -> TaskLosses:
    """What makes predictions of a head's outputs."""
    with config_errors("tasks"):
        return TaskLosses([task.build() for task in job.tasks])


def build_slot_inputs(job: JobConfig, fusion: FusionLayer) -> SlotInputs:
    """A slot per task, and one more that reads everything where the fusion layer has a shared module."""
    slots = [task.features or job.features.names for task in job.tasks]
    if fusion.num_slots is not None:
        slots += [job.features.names] * (fusion.num_slots - len(slots))
    return SlotInputs(
        dense_masks=[[int(feature.name in slot) for feature in job.features.dense] for slot in slots],
        sparse_masks=[[int(feature.name in slot) for feature in job.features.sparse] for slot in slots],
    )
