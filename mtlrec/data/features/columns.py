"""A window's Arrow columns become tensors: transforms, ids with lengths, targets with spaces. No Python loop over rows.

Ids are checked against their table here, because on a GPU the lookup itself would turn an id that is out of range into
row 0 without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mtlrec.batch import NO_GROUP, Batch
from mtlrec.config import DenseFeature, FeaturesConfig, JobConfig, LabelColumn, SparseFeature, TableConfig
from mtlrec.config.data import DenseStep
from mtlrec.data.block import Block
from mtlrec.data.collate import collate
from mtlrec.data.features.hashing import hash_text
from mtlrec.data.features.ids import is_ids, read_ids
from mtlrec.data.features.row_errors import FileRowErrors, RowErrors
from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.data.features.vocabulary import Vocabulary, read_vocabulary
from mtlrec.data.labels import LabelColumns
from mtlrec.data.memory import copied
from mtlrec.data.sources.arrow_types import is_number, is_text, plain
from mtlrec.data.sources.dataset import ColumnUse, Dataset, OnError
from mtlrec.data.sources.parquet import WindowTable
from mtlrec.losses.task_loss import LabelRule


@dataclass(frozen=True)
class Columns:
    """What of a file a job reads, and as what.

    `labels` are the columns that targets and spaces are made of, with what they may hold, and `spaces` makes them;
    `group_by` is the one whose values become `Batch.group_ids`; `vocabularies` by feature;
    `expected_fingerprints` are training's `id_fingerprints`, where values are taken one by one: a hash of text is
    another than that of the same number.
    """

    features: FeaturesConfig
    tables: Mapping[str, TableConfig]
    labels: Mapping[str, LabelColumn]
    vocabularies: Mapping[str, Vocabulary]
    spaces: SampleSpaces | None = None
    group_by: str | None = None
    expected_fingerprints: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(job: JobConfig, with_labels: bool = True, with_groups: bool = False) -> Columns:
        """Reads the vocabularies. Raises DataError where one is missing or larger than its table."""
        return Columns(
            job.features,
            job.tables,
            job.label_columns if with_labels else {},
            {
                feature.name: read_vocabulary(job.data.root, feature, job.tables[feature.table].rows)
                for feature in job.features.sparse
                if feature.vocabulary is not None
            },
            SampleSpaces.of(job) if with_labels else None,
            job.metrics.group_by if with_groups else None,
        )

    @property
    def column_uses(self) -> dict[str, list[ColumnUse]]:
        """The columns, each once, and what reads them."""
        column_uses: dict[str, list[ColumnUse]] = {column: [] for column in (*self.features.columns, *self.labels)}
        for dense in self.features.dense:
            column_uses[dense.source].append(
                ColumnUse(f"features.dense.{dense.name}", is_number, "numbers or booleans")
            )
        for sparse in self.features.sparse:
            key = f"features.sparse.{sparse.name}"
            column_uses[sparse.source].append(ColumnUse(key, *is_ids(sparse, self._hashed(sparse))))
            if sparse.weight_column is not None:
                column_uses[sparse.weight_column].append(
                    ColumnUse(f"{key}.weights", _is_list_of_numbers, "lists of numbers")
                )
        for name, label in self.labels.items():
            column_uses[name].append(ColumnUse(label.key, is_number, "numbers or booleans"))
        if self.group_by is not None:
            column_uses.setdefault(self.group_by, []).append(
                ColumnUse("metrics.group_by", _is_group, "integers or text")
            )
        return column_uses

    def _hashed(self, sparse: SparseFeature) -> str | None:
        """text or numbers, where training knew."""
        is_hash = sparse.transform == "hash" and sparse.name in self.expected_fingerprints
        return self.expected_fingerprints[sparse.name].removeprefix("hashes of ") if is_hash else None

    def id_fingerprints(self, dataset: Dataset) -> dict[str, str]:
        """What the ids of a feature hang on beside the job: whether it hashes text or numbers, the words it knows."""
        hashes = {
            sparse.name: f"hashes of {dataset.kinds[sparse.source]}"
            for sparse in self.features.sparse
            if sparse.transform == "hash" and sparse.source in dataset.kinds
        }
        return hashes | self.vocabulary_fingerprints

    @property
    def vocabulary_fingerprints(self) -> dict[str, str]:
        return {name: f"vocabulary {vocabulary.fingerprint}" for name, vocabulary in self.vocabularies.items()}

    def block(self, rows: WindowTable, on_error: OnError = "fail") -> Block:
        """Raises DataError naming file, row group, row, column and value, unless `on_error` leaves out single rows."""
        block = self.converted(rows.table, FileRowErrors(rows, ends=on_error != "skip_row"))
        return replace(block, files=rows.files)

    def converted(self, table: pa.Table, row_errors: RowErrors) -> Block:
        """What training and serving make of rows, wherever these come from."""
        block = Block(
            num_rows=table.num_rows,
            dense=[transformed(table[dense.source], dense, row_errors) for dense in self.features.dense],
            labels=self._label_columns(table, row_errors),
            spaces=self.spaces,
            ids=[
                read_ids(table, sparse, self.tables[sparse.table].rows, self.vocabularies.get(sparse.name), row_errors)
                for sparse in self.features.sparse
            ],
            group_ids=None if self.group_by is None else _groups(table[self.group_by]),
        )
        return block.blank(row_errors.bad_mask, row_errors.messages) if row_errors.bad_mask is not None else block

    def _label_columns(self, table: pa.Table, row_errors: RowErrors) -> LabelColumns:
        columns = [_label(table[name], name, label.rule, row_errors) for name, label in self.labels.items()]
        return LabelColumns([values for values, _ in columns], [known for _, known in columns])

    def batch(self, block: Block) -> Batch:
        """A block's rows, and nothing beside them."""
        return collate([(block, 0, len(block))], len(block), self.features.collections)


def _label(
    column: pa.ChunkedArray, name: str, rule: LabelRule, row_errors: RowErrors
) -> tuple[np.ndarray, np.ndarray | None]:
    """[N] float32, 0 where it is not known; and where it is, [N] bool, or None for everywhere."""
    values = numbers(column)
    _check_rule(values, name, rule, row_errors)
    unknown = np.isnan(values)
    if not unknown.any():
        return values.astype(np.float32, copy=False), None
    return np.where(unknown, 0, values).astype(np.float32), ~unknown


def _check_rule(values: np.ndarray, name: str, rule: LabelRule, row_errors: RowErrors) -> None:
    too_large = np.abs(values) > np.finfo(np.float32).max
    if rule == "flag":
        wrong = (values != 0) & (values != 1) & ~np.isnan(values)
        allowed = "a binary label, or a column that stands alone in a space, is 0, 1"
    elif rule == "non_negative":
        wrong, allowed = (values < 0) | too_large, "a watch time or a sample_weight is >= 0"
    else:
        wrong, allowed = too_large, "a label is a finite number"
    row_errors.add(wrong, name, lambda row: f"holds {values[row]:g}; {allowed} or null")


def transformed(column: pa.ChunkedArray, feature: DenseFeature, row_errors: RowErrors) -> np.ndarray:
    """[N] float32: the feature's transforms in turn."""
    # A time in milliseconds has more digits than float32, and standardize brings them out.
    given = floats(column) if "standardize" in feature.steps else numbers(column)
    with np.errstate(over="ignore"):
        values = through(given, feature, feature.steps, row_errors).astype(np.float32, copy=False)
    if np.isfinite(values).all():
        return values
    row_errors.add(np.isinf(values), feature.source, lambda row: f"holds {given[row]:g}; a dense feature is finite")
    return np.where(np.isnan(values), np.float32(0), values)


def through(given: np.ndarray, feature: DenseFeature, steps: Sequence[DenseStep], row_errors: RowErrors) -> np.ndarray:
    """[N] of the type of `given`: these of the feature's transforms in turn."""
    values = given
    for step in steps:
        if step == "clip":
            values = np.clip(values, feature.min, feature.max)
        elif step == "log1p":
            if np.fmin.reduce(values, initial=0) < 0:
                describe = lambda row: f"holds {given[row]:g}; log1p takes values >= 0"  # noqa: E731
                row_errors.add(values < 0, feature.source, describe)
                values = np.maximum(values, 0)
            values = _log1p(values)
        elif step == "standardize":
            values = (values - (feature.mean or 0.0)) / (feature.std or 1.0)
    return values


def _log1p(values: np.ndarray) -> np.ndarray:
    """By torch, whose log1p is vectorized."""
    out = copied(values, values.dtype.type)
    torch.from_numpy(out).log1p_()
    return out


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """[N] float32, or float64 where the column's type does not fit in; null as NaN. Not to be written to."""
    kind = column.type
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return np.asarray(column.to_numpy()).astype(np.float32, copy=False)
    if kind in (pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.bool_()):
        return np.asarray(pc.cast(column, pa.float32()).to_numpy())
    return floats(column)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """[N] float64, null as NaN. Not to be written to."""
    return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)


def _groups(column: pa.ChunkedArray) -> np.ndarray:
    """[N] int64. Integers as they are, text by a hash that is the same on every rank; null is a group too."""
    present, known = np.asarray(column.is_valid()), column.drop_null().combine_chunks()
    is_text_ = not (pa.types.is_integer(column.type) or pa.types.is_null(column.type))
    ids = np.full(len(present), NO_GROUP)
    ids[present] = (hash_text(pc.cast(known, pa.large_string())) if is_text_ else np.asarray(known)).astype(np.int64)
    return ids


def _is_group(kind: pa.DataType) -> bool:
    return pa.types.is_integer(plain(kind)) or is_text(plain(kind))


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and is_number(kind.value_type)
