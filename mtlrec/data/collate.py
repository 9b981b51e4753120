"""Arrow columns become tensors, nothing else: transforms, ids with lengths, labels with masks, padding.

No Python loop over rows: lists are read through Arrow's offsets. Ids are checked against their table here, because on a
GPU the lookup itself would turn an id that is out of range into row 0 without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.batch import Batch
from mtlrec.config import ColumnRule, DenseFeature, FeaturesConfig, JobConfig, LabelColumn, SparseFeature, TableConfig
from mtlrec.data.parquet import DataError, Reader, TableBatch


@dataclass(frozen=True)
class Collator:
    """Turns a `TableBatch` into a `Batch`.

    `labels` are the columns that become `Batch.labels`, with what they may hold; `group_by` the one whose values
    become `Batch.groups`.
    """

    features: FeaturesConfig
    tables: dict[str, TableConfig]
    labels: Mapping[str, LabelColumn]
    group_by: str | None = None

    @staticmethod
    def of(job: JobConfig, with_labels: bool = True, with_groups: bool = False) -> Collator:
        labels = job.label_columns if with_labels else {}
        return Collator(job.features, job.tables, labels, job.metrics.group_by if with_groups else None)

    @property
    def columns(self) -> list[str]:
        wanted = [*self.features.names, *self.labels]
        return list(dict.fromkeys(wanted if self.group_by is None else [*wanted, self.group_by]))

    @property
    def readers(self) -> dict[str, list[Reader]]:
        """What reads each column."""
        readers: dict[str, list[Reader]] = {column: [] for column in self.columns}
        for dense in self.features.dense:
            readers[dense.name].append(Reader(f"features.dense.{dense.name}", _is_number, "numbers or booleans"))
        for sparse in self.features.sparse:
            readers[sparse.name].append(
                Reader(f"features.sparse.{sparse.name}", _is_ids, "integers or lists of integers")
            )
        for name, label in self.labels.items():
            readers[name].append(Reader(label.key, _is_number, "numbers or booleans"))
        if self.group_by is not None:
            readers[self.group_by].append(Reader("metrics.group_by", _is_group, "integers or text"))
        return readers

    def __call__(self, rows: TableBatch) -> Batch:
        try:
            labels, label_mask = self._labels(rows.table, rows.padded_rows)
            return Batch(
                dense=self._dense(rows.table, rows.padded_rows),
                sparse=self._sparse(rows.table, rows.padded_rows),
                labels=labels,
                label_mask=label_mask,
                weights=_pad(np.ones(rows.table.num_rows, np.float32), rows.padded_rows),
                origin=rows.origin,
                groups=None if self.group_by is None else self._groups(rows.table[self.group_by], rows.padded_rows),
            )
        except DataError as error:
            raise DataError(f"{rows.origin}: {error}") from None

    def _dense(self, table: pa.Table, rows: int) -> torch.Tensor:
        dense = np.zeros((rows, len(self.features.dense)), np.float32)
        for index, feature in enumerate(self.features.dense):
            dense[: table.num_rows, index] = _transformed(table[feature.name], feature)
        return torch.from_numpy(dense)

    def _labels(self, table: pa.Table, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = np.zeros((rows, len(self.labels)), np.float32)
        mask = np.zeros((rows, len(self.labels)), np.float32)
        for index, (name, label) in enumerate(self.labels.items()):
            values = _floats(table[name], name)
            known = ~np.isnan(values)
            _check_rule(values[known], name, label.rule)
            labels[: table.num_rows, index] = np.where(known, values, 0.0)
            mask[: table.num_rows, index] = known
        return torch.from_numpy(labels), torch.from_numpy(mask)

    def _groups(self, column: pa.ChunkedArray, rows: int) -> torch.Tensor:
        """[rows] int64. Integers as they are, text by a hash that is the same on every rank; null is a group too."""
        if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
            present = np.asarray(column.is_valid())
            ids = np.full(len(present), np.iinfo(np.int64).min)
            ids[present] = _int64(column.drop_null().combine_chunks())
        elif not _is_group(column.type):
            raise DataError(f"column '{self.group_by}' is {column.type}; metrics.group_by takes integers or text")
        else:
            coded = pc.fill_null(column, "\0").combine_chunks().dictionary_encode()
            digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in coded.dictionary.to_pylist()]
            ids = np.frombuffer(b"".join(digests), np.int64)[np.asarray(coded.indices)]
        return _pad(ids, rows)

    def _sparse(self, table: pa.Table, rows: int) -> KeyedJaggedTensor:
        values, lengths = [], []
        for feature in self.features.sparse:
            ids, counts = _ids(table[feature.name], feature)
            _check_range(ids, feature, self.tables[feature.table].rows)
            values.append(ids)
            lengths.append(np.concatenate([counts, np.zeros(rows - len(counts), np.int32)]))
        return KeyedJaggedTensor(
            keys=[feature.name for feature in self.features.sparse],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )


def _check_rule(known: np.ndarray, name: str, rule: ColumnRule) -> None:
    if rule == "flag":
        wrong = known[(known != 0) & (known != 1)]
        allowed = "a binary label, or a column that stands alone in a space, is 0, 1"
    elif rule == "non_negative":
        wrong, allowed = known[known < 0], "a watch time or a sample_weight is >= 0"
    else:
        return
    if wrong.size:
        raise DataError(f"column '{name}' holds {wrong[0]:g}; {allowed} or null")


def _transformed(column: pa.ChunkedArray, feature: DenseFeature) -> np.ndarray:
    values = _floats(column, feature.name)  # float64: a time in milliseconds has more digits than float32
    if feature.transform == "log1p":
        if (values < 0).any():
            raise DataError(f"feature '{feature.name}' holds {np.nanmin(values):g}; log1p takes values >= 0")
        values = np.log1p(values)
    elif feature.transform == "standardise":
        values = (values - (feature.mean or 0.0)) / (feature.std or 1.0)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)


def _floats(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """[rows] float64, null as NaN."""
    if not (_is_number(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"column '{name}' is {column.type}; a dense feature, label, space or weight is a number")
    return np.array(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)


def _is_number(kind: pa.DataType) -> bool:
    is_exact = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    return is_exact or pa.types.is_floating(kind)


def _is_group(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_ids(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or _is_list_of_integers(kind)


def _ids(column: pa.ChunkedArray, feature: SparseFeature) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all rows one after another (int64) and how many each row has (int32)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps an empty column chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_null(array.type):
        array = pa.nulls(len(array), pa.int64())
    if pa.types.is_integer(array.type):
        present = array.drop_null()
        return _int64(present), np.asarray(array.is_valid()).astype(np.int32)
    if not _is_list_of_integers(array.type):
        raise DataError(
            f"column '{feature.name}' is {array.type}; a sparse feature is an integer or a list of integers"
        )
    counts = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
    ids = array.flatten()  # skips what null rows hide, and honours the slice
    if ids.null_count:
        raise DataError(f"list '{feature.name}' holds a null id; drop nulls from the lists")
    flat = _int64(ids)
    if feature.max_length is not None and counts.max(initial=0) > feature.max_length:
        flat, counts = _keep_last(flat, counts, feature.max_length)
    return flat, counts.astype(np.int32)


def _is_list_of_integers(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type)


def _int64(array: pa.Array) -> np.ndarray:
    ids = np.asarray(array)
    if ids.dtype == np.uint64 and ids.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"id {ids.max()} does not fit in 64 bits with a sign; hash or map the ids first")
    return ids.astype(np.int64, copy=False)


def _keep_last(flat: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `most` ids of each row: position counted from the row's end decides."""
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(flat))
    return flat[from_end <= most], np.minimum(counts, most)


def _check_range(ids: np.ndarray, feature: SparseFeature, rows: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= rows):
        bad = ids[(ids < 0) | (ids >= rows)][0]
        remedy = f"raise tables.{feature.table}.rows" if bad >= 0 else "ids are not negative"
        raise DataError(f"feature '{feature.name}' holds id {bad}, table '{feature.table}' has {rows} rows; {remedy}")


def _pad(values: np.ndarray, rows: int) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([values, np.zeros(rows - len(values), values.dtype)]))
