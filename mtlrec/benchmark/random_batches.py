"""Batches of a job's shapes without its data: to measure how fast it would train."""

from __future__ import annotations

import torch

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.data.labels import LabelColumns, TaskLabels
from mtlrec.models.sparse_arch import unit_weighted

SKEW = 3
"""An id is rows * u^3 for uniform u: few ids make most of the rows, as in logs."""


def random_batches(job: JobConfig, count: int, seed: int) -> list[Batch]:
    """Normal floats, skewed ids (of a feature with `max_length` any number up to it, else one), flags that are 1 in a
    tenth of the rows, other labels uniform up to 1: a space that compares them with more is empty."""
    generator = torch.Generator().manual_seed(seed)
    return [_batch(job, generator) for _ in range(count)]


def _batch(job: JobConfig, generator: torch.Generator) -> Batch:
    rows = job.data.batch_size
    labels = _labels(job, generator)
    lengths, values = {}, {}
    for feature in job.features.sparse:
        most = feature.max_length
        length = torch.ones(rows) if most is None else torch.randint(0, most + 1, (rows,), generator=generator)
        lengths[feature.name] = length.int()
        drawn = torch.rand(int(length.sum()), generator=generator)
        values[feature.name] = (job.tables[feature.table].rows * drawn.double() ** SKEW).long()
    return Batch(
        dense=torch.randn(rows, len(job.features.dense), generator=generator),
        sparse=unit_weighted(job.features, values, lengths),
        targets=torch.from_numpy(labels.targets).T,
        in_space=torch.from_numpy(labels.in_space).T,
        entire_space=torch.from_numpy(labels.entire_space).T,
        sample_weights=torch.from_numpy(labels.weights).T,
        row_mask=torch.ones(rows),
        label_faults=torch.from_numpy(labels.faults(0, rows)),
        origin="random batches",
    )


def _labels(job: JobConfig, generator: torch.Generator) -> TaskLabels:
    drawn = torch.rand(len(job.label_columns), job.data.batch_size, generator=generator)
    for index, column in enumerate(job.label_columns.values()):
        if column.rule == "flag":
            drawn[index] = (drawn[index] < 0.1).float()
    return SampleSpaces.of(job)(LabelColumns(list(drawn.numpy()), [None] * len(drawn)))
