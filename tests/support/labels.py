"""Batches that hold labels and nothing else: what losses and metrics are tested on."""

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.batch import Batch
from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.data.labels import LabelColumns


def labeled(spaces: SampleSpaces, columns: Tensor, known: Tensor | None = None, mask: Tensor | None = None) -> Batch:
    """columns [B, C], 0 where unknown; known [B, C] 0/1, or None for all; mask [B], 0 for padding rows. Targets and
    weights have the type of the columns, so that a loss may be taken in float64."""
    values = list(columns.numpy().T)
    knowns: list[np.ndarray | None] = [None] * len(values)
    if known is not None:
        knowns = [None if column.all() else column > 0 for column in known.numpy().T]
    given, kept = LabelColumns(values, knowns), None if mask is None else mask.numpy() > 0
    labels = spaces(given if kept is None else given.blank(~kept), kept)
    rows = len(columns)

    return batch_of(
        torch.from_numpy(labels.targets).T.to(columns.dtype),
        torch.from_numpy(labels.in_space).T,
        torch.from_numpy(labels.entire_space).T,
        torch.from_numpy(labels.weights).T.to(columns.dtype),
        label_faults=torch.from_numpy(labels.faults(0, rows)),
    )


def batch_of(
    targets: Tensor,
    in_space: Tensor | None = None,
    entire_space: Tensor | None = None,
    sample_weights: Tensor | None = None,
    label_faults: Tensor | None = None,
    group_ids: Tensor | None = None,
) -> Batch:
    """By default every row is in either space and weighs 1."""
    rows, tasks = targets.shape
    everywhere = torch.ones(rows, tasks, dtype=torch.bool)
    in_space = everywhere if in_space is None else in_space.bool()
    return Batch(
        dense=torch.zeros(rows, 0),
        sparse=KeyedJaggedTensor.empty(),
        targets=targets,
        in_space=in_space,
        entire_space=everywhere if entire_space is None else entire_space.bool(),
        sample_weights=everywhere.to(targets.dtype) if sample_weights is None else sample_weights,
        row_mask=torch.ones(rows),
        label_faults=torch.zeros(2, tasks, dtype=torch.int64) if label_faults is None else label_faults,
        group_ids=group_ids,
        origin="here.parquet",
    )


def loss_parts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What `MultiTaskLoss` takes of a batch."""
    return batch.targets, batch.in_space, batch.sample_weights
