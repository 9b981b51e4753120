"""Parquet in, Parquet out, through a predictor: a row that cannot be scored has nulls and its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mtlrec.data.loader import check_id_fingerprints
from mtlrec.data.order import EpochOrder, Phase
from mtlrec.data.sources.parquet import RowGroupReader
from mtlrec.evaluation.predict import column_of, output_schema, row_groups_of, score_kinds, written
from mtlrec.serving.predictor import Predictor
from mtlrec.training.progress import watched

ERROR = "error"


class Counts(NamedTuple):
    """Rows that were written, and those of them that have an error."""

    rows: int
    errors: int


def score_files(predictor: Predictor, source: str, output: Path) -> Counts:
    """Score a file, folder, glob or URI of Parquet files into the Parquet file `output`, in the input's order.

    `output` has the input's columns (or data.keys), `pred_TASK` per task, `fused_score` if the artifact has one, and
    `error`: why a row has no scores.

    Raises DataError if a file cannot be read or lacks a column.
    """
    data = predictor.job.data.model_copy(update={"on_error": "fail"})
    job, columns = predictor.job.model_copy(update={"data": data}), replace(predictor.columns, expected_fingerprints={})
    dataset = row_groups_of(source, output, columns, job, 1)
    check_id_fingerprints(predictor.manifest.id_fingerprints, columns.id_fingerprints(dataset))
    kinds = score_kinds(job, predictor.manifest.fused_score is not None)
    schema = output_schema(dataset, job, kinds | {ERROR: pa.string()})
    kept = [field for field in schema if field.name not in kinds and field.name != ERROR]
    read = list(dict.fromkeys([*columns.column_uses, *(field.name for field in kept)]))
    reader = RowGroupReader(dataset, read, retries=data.retries)
    windows = EpochOrder([group.rows for group in dataset.row_groups], 0, [Phase(1, data.batch_size)]).windows(0)
    rows = errors = 0
    with written(output, schema) as write:
        for _, found in watched(reader.windows(windows, data.read_ahead), len(windows), "predict", True):
            for start in range(0, len(found.table), data.batch_size):
                table = found.table.slice(start, data.batch_size)
                scores = predictor.predict(table.select(list(columns.column_uses)))
                arrays = [column_of(table, field) for field in kept]
                arrays += [pa.array(values, from_pandas=True) for values in scores.predictions.values()]
                if scores.fused_score is not None:
                    arrays.append(pa.array(scores.fused_score, from_pandas=True))
                arrays.append(pa.array([scores.errors.get(row) for row in range(len(table))], pa.string()))
                write(pa.table(arrays, schema=schema))
                rows, errors = rows + len(table), errors + len(scores.errors)
    return Counts(rows, errors)
