"""Rows of a split that are in order: a model is traced with them, and an artifact tried with them where it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mtlrec.checkpoints.job_state import JobState
from mtlrec.config import JobConfig
from mtlrec.data.collate import rows_of
from mtlrec.data.features.columns import Columns
from mtlrec.data.features.row_errors import RawRowErrors
from mtlrec.data.sources.dataset import ColumnUse
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import ArtifactError
from mtlrec.serving.manifest import SAMPLE, Sample, input_specs
from mtlrec.serving.program import Function, arguments
from mtlrec.training.loading import loader_of

SAMPLE_ROWS = 8


def first_rows(job: JobConfig, split: str, ranks: Ranks, state: JobState) -> tuple[Columns, pa.Table]:
    """The features' columns, and of the first batch with any those rows that are in order."""
    keep: dict[str, list[ColumnUse]] = {column: [] for column in job.features.columns}
    loader = loader_of(job, split, ranks, expected_fingerprints=state.id_fingerprints, keep=keep)
    for cuts, size in loader.cuts():
        weights = loader.batch(cuts, size).row_mask
        table = rows_of(cuts).select(job.features.columns)
        table = table.filter(pa.array(weights[: len(table)].numpy() > 0))
        if len(table):
            return replace(loader.columns, labels={}, spaces=None, group_by=None), table
    raise ArtifactError(f"data.{split}: no row of it is in order; name another --split")


def inputs_of(columns: Columns, table: pa.Table, device: torch.device) -> tuple[Tensor, ...]:
    """Rows that are in order, as the program takes them."""
    block = columns.converted(table, RawRowErrors(len(table)))
    return arguments(columns.batch(block).to(device))


def example_of(columns: Columns, device: torch.device) -> tuple[Tensor, ...]:
    """Several rows with several ids: tracing takes what it sees one of for a constant."""
    rows, length = 7, 2
    tensors = [torch.zeros(rows, len(columns.features.dense))]
    for collection in columns.features.collections.values():
        features = len(collection.features)
        count = rows * length * features
        tensors += [torch.zeros(count, dtype=torch.int64), torch.full((features, rows), length, dtype=torch.int32)]
        tensors += [torch.ones(count)] if collection.is_weighted else []
    return tuple(tensor.to(device) for tensor in tensors)


def write_sample(columns: Columns, rows: pa.Table, folder: Path, function: Function, device: torch.device) -> Sample:
    table = rows.slice(0, SAMPLE_ROWS)
    pq.write_table(table, folder / SAMPLE)
    tensors = inputs_of(columns, table, device)
    with torch.no_grad():
        predictions = function(*tensors)["predictions"]
    return Sample(
        inputs={spec.name: tensor.tolist() for spec, tensor in zip(input_specs(columns), tensors, strict=True)},
        predictions=predictions.tolist(),
    )
