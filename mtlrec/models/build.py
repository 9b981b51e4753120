"""From the config to modules: the one place where a kind becomes a class."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mtlrec import config as cfg
from mtlrec import heads, layers, losses
from mtlrec.config import JobConfig
from mtlrec.errors import ConfigError, UserError
from mtlrec.layers.fusion import FusionLayer
from mtlrec.layers.interaction import Bottom
from mtlrec.losses import MultiTaskLoss, TaskLoss, TaskLosses
from mtlrec.losses.funnel_terms import FunnelTerm
from mtlrec.models.balancing import build_balancing
from mtlrec.models.embeddings import PooledFeatures, embedding_tables, feature_dims
from mtlrec.models.multitask import MultiTaskModel, OverArch, SlotInputs
from mtlrec.models.train_module import TrainModule


def build_model(job: JobConfig, table_device: torch.device | None = None) -> MultiTaskModel:
    """The whole model. By default its tables are on meta, to be made where they are sharded; the rest is real."""
    with config_errors("model.bottom"):
        bottom = build_bottom(job)
    with config_errors("model.fusion"):
        fusion = build_fusion(job.model.fusion, bottom.output_dim, len(job.tasks))
    with config_errors("model.heads"):
        tower_heads = build_heads(job, fusion.output_dim)
    over_arch = OverArch(
        pooled=PooledFeatures(job.features.sparse),
        inputs=build_slot_inputs(job, fusion),
        bottom=bottom,
        fusion=fusion,
        heads=tower_heads,
    )
    tables = embedding_tables(job.tables, job.features.sparse, table_device or torch.device("meta"))
    return MultiTaskModel(tables, over_arch)


def build_train_module(job: JobConfig, table_device: torch.device | None = None) -> TrainModule:
    model = build_model(job, table_device)
    with config_errors("tasks"):
        loss = MultiTaskLoss(
            losses=[build_task_loss(task) for task in job.tasks],
            weights=[task.weight for task in job.tasks],
            balancing=build_balancing(job.loss.weighting, len(job.tasks)),
            funnel_term=build_funnel_term(job),
        )
    return TrainModule(model, loss)


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn a constructor's ValueError into a ConfigError that names the key: layers, heads and losses know no keys.

    A ValueError that torch or Python raised, of a strict zip say, is a bug and stays one.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        if linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise "):
            raise ConfigError(f"{key}: {error}") from error
        raise


def build_bottom(job: JobConfig) -> Bottom:
    bottom = job.model.bottom
    dims = feature_dims(job.tables, job.features.sparse)
    dense_dim = len(job.features.dense)
    match bottom:
        case cfg.ConcatBottom():
            return layers.Concat(dense_dim, dims, bottom.hidden)
        case cfg.DotBottom():
            return layers.Dot(dense_dim, dims, bottom.hidden)
        case cfg.CrossBottom():
            return layers.Cross(dense_dim, dims, bottom.num_layers, bottom.rank)


def build_fusion(fusion: cfg.Fusion, input_dim: int, num_tasks: int) -> FusionLayer:
    hidden = fusion.expert_hidden
    options = layers.ExpertOptions(
        activation=fusion.activation, norm=fusion.norm, dropout=fusion.dropout, recompute=fusion.recompute
    )
    match fusion:
        case cfg.SingleTaskFusion():
            return layers.SingleTask(input_dim, num_tasks, hidden, **options)
        case cfg.SharedBottomFusion():
            return layers.SharedBottom(input_dim, num_tasks, hidden, **options)
        case cfg.AsymmetricFusion():
            return layers.AsymmetricBottom(input_dim, num_tasks, hidden, **options)
        case cfg.CrossStitchFusion():
            return layers.CrossStitch(input_dim, num_tasks, hidden, **options)
        case cfg.CustomizedFusion():
            return layers.CustomizedSharing(input_dim, num_tasks, hidden, fusion.merge, **options)
        case cfg.MMoEFusion():
            experts, gate_hidden = fusion.num_experts, fusion.gate_hidden
            return layers.MMoE(input_dim, num_tasks, experts, hidden, gate_hidden, fusion.gate_dropout, **options)
        case cfg.PLEFusion():
            own, shared = fusion.num_task_experts, fusion.num_shared_experts
            return layers.PLE(input_dim, num_tasks, own, shared, hidden, fusion.gate_dropout, **options)
        case cfg.AdaTTSpFusion():
            own, residual = fusion.num_task_experts, fusion.native_residual
            return layers.AdaTTSp(input_dim, num_tasks, own, hidden, residual, fusion.gate_dropout, **options)
        case cfg.AdaTTFusion():
            own, shared, residual = fusion.num_task_experts, fusion.num_shared_experts, fusion.native_residual
            return layers.AdaTT(input_dim, num_tasks, own, shared, hidden, residual, fusion.gate_dropout, **options)


def build_heads(job: JobConfig, input_dim: int) -> nn.Module:
    names, parents = [task.name for task in job.tasks], task_parents(job)
    rates = [task.negative_sampling_rate for task in job.tasks]
    match job.model.heads:
        case cfg.IndependentHeads(tower_hidden=hidden, entire_space=entire_space):
            return heads.Independent(names, parents, input_dim, hidden, entire_space=entire_space, sampling_rates=rates)
        case cfg.ESMMHeads(tower_hidden=hidden):
            return heads.ESMM(names, parents, input_dim, hidden, sampling_rates=rates)
        case cfg.ESCM2Heads(kind=kind, tower_hidden=hidden):
            return heads.ESCM2(
                names, parents, input_dim, hidden, doubly_robust=kind == "escm2_dr", sampling_rates=rates
            )
        case cfg.AITMHeads(tower_hidden=hidden):
            return heads.AITM(names, parents, input_dim, hidden, sampling_rates=rates)
        case cfg.DBMTLHeads(tower_hidden=hidden, relation_hidden=relation):
            return heads.DBMTL(names, parents, input_dim, hidden, relation_hidden=relation, sampling_rates=rates)


def build_task_loss(task: cfg.Task) -> TaskLoss:
    match task.kind:
        case "binary":
            return losses.Binary(pos_weight=task.pos_weight, label_smoothing=task.label_smoothing)
        case "regression":
            return losses.Regression(loss=task.loss, huber_delta=task.huber_delta)
        case "watch_time":
            return losses.WatchTime()


def build_task_losses(job: JobConfig) -> TaskLosses:
    """What makes predictions of a head's outputs."""
    with config_errors("tasks"):
        return TaskLosses([build_task_loss(task) for task in job.tasks])


def build_funnel_term(job: JobConfig) -> FunnelTerm | None:
    parents = task_parents(job)
    match job.model.heads:
        case cfg.ESCM2Heads() as escm2:
            weights = escm2.conditional_weight, escm2.entire_weight
            return losses.Counterfactual(parents, escm2.kind == "escm2_dr", escm2.propensity_floor, *weights)
        case cfg.AITMHeads(calibrator=alpha):
            return losses.ExpectationCalibrator(parents, alpha)
    return None


def build_slot_inputs(job: JobConfig, fusion: FusionLayer) -> SlotInputs:
    """A slot per task, and one more that reads everything where the fusion layer has a shared module."""
    slots = [task.features or job.features.names for task in job.tasks]
    if fusion.num_slots is not None:
        slots += [job.features.names] * (fusion.num_slots - len(slots))
    return SlotInputs(
        dense_masks=[[int(feature.name in slot) for feature in job.features.dense] for slot in slots],
        sparse_masks=[[int(feature.name in slot) for feature in job.features.sparse] for slot in slots],
    )


def task_parents(job: JobConfig) -> list[int | None]:
    names = [task.name for task in job.tasks]
    return [None if task.given is None else names.index(task.given) for task in job.tasks]
