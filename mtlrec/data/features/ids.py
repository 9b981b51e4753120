"""A column of ids, of lists of them, or of numbers that become ids -> ids one after another, lengths and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlrec.config import SparseFeature
from mtlrec.data.block import Ids
from mtlrec.data.features.hashing import hash_integers, hash_text
from mtlrec.data.features.row_errors import RowErrors
from mtlrec.data.features.vocabulary import Vocabulary
from mtlrec.data.sources.arrow_types import is_number, is_text, plain


def is_ids(feature: SparseFeature, hashed: str | None = None) -> tuple[Callable[[pa.DataType], bool], str]:
    """Whether the feature takes a column's type, and what it takes, in words.

    Args:
        hashed: `text` or `numbers`, where a hash must be of what it was in training
    """
    value, words = {
        "none": (pa.types.is_integer, "integers"),
        "modulo": (pa.types.is_integer, "integers"),
        "bucketize": (is_number, "numbers"),
        "hash of text": (is_text, "text (as in training)"),
        "hash of numbers": (pa.types.is_integer, "integers (as in training)"),
    }.get(
        f"hash of {hashed}" if hashed else feature.transform,
        (lambda kind: pa.types.is_integer(kind) or is_text(kind), "integers or text"),
    )

    def takes(kind: pa.DataType) -> bool:
        inner = _item_type(kind) if _is_list(kind) else kind
        if feature.weight_field is not None:
            is_pairs = _is_list(kind) and pa.types.is_struct(inner)
            fields = _fields(inner, feature.weight_field) if is_pairs else None
            return fields is not None and value(plain(fields[0].type)) and is_number(fields[1].type)
        return bool(value(plain(inner))) and (feature.weights is None or _is_list(kind))

    if feature.weight_field is not None:
        return takes, f"lists of structs of {feature.weight_field} and one other field, of {words}"
    if feature.weights is not None:
        return takes, f"lists of {words}"
    remedy = "; text needs transform hash or vocabulary" if feature.transform in ("none", "modulo") else ""
    return takes, f"{words} or lists of {words}{remedy}"


class Flat(NamedTuple):
    """Values of all rows one after another, how many each row has (None: one), and their weights."""

    values: pa.Array
    lengths: np.ndarray | None
    weights: np.ndarray | None = None

    @property
    def counts(self) -> np.ndarray:
        return np.ones(len(self.values), np.int32) if self.lengths is None else self.lengths


def read_ids(
    table: pa.Table, feature: SparseFeature, rows: int, vocabulary: Vocabulary | None, row_errors: RowErrors
) -> Ids:
    """The feature's ids, each below `rows`. What is not goes to `row_errors`, and is 0 until its row is left out."""
    flat = _flat(table[feature.source], feature, row_errors)
    if feature.weight_column is not None:
        flat = _with_weights(flat, table[feature.weight_column], feature.weight_column, row_errors)
    if feature.max_length is not None and flat.counts.max(initial=0) > feature.max_length:
        flat = _shortened(flat, feature, feature.max_length, row_errors)
    values = _numbered(flat, feature, rows, vocabulary, row_errors)
    return Ids(values, flat.lengths, flat.weights, is_narrow=rows <= 2**31)


def flat_values(column: pa.ChunkedArray, feature: SparseFeature, row_errors: RowErrors) -> tuple[pa.Array, np.ndarray]:
    """The values of all rows one after another, `max_length` applied but no transform, and the row that each stands
    in."""
    flat = _flat(column, feature, row_errors)
    if feature.max_length is not None and flat.counts.max(initial=0) > feature.max_length:
        flat = _shortened(flat, feature, feature.max_length, row_errors)
    return flat.values, np.repeat(np.arange(len(flat.counts)), flat.counts)


def _flat(column: pa.ChunkedArray, feature: SparseFeature, row_errors: RowErrors) -> Flat:
    array = _combined(column)
    if pa.types.is_null(array.type):
        return Flat(pa.array([], pa.int64()), np.zeros(len(array), np.int32))
    if not _is_list(array.type):
        if not array.null_count and not pa.types.is_floating(array.type):
            return Flat(array, None)
        unknown = pc.is_null(array, nan_is_null=True)
        return Flat(array.filter(pc.invert(unknown)), 1 - np.asarray(unknown).astype(np.int32))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int32)
    values = array.flatten()  # skips what null rows hide, and honors the slice
    weights = None
    if pa.types.is_struct(values.type):
        fields = _fields(values.type, feature.weight_field or "")
        assert fields is not None, "is_ids refuses such a type"
        of_ids, of_weights = fields
        weights = _floats(pc.struct_field(values, of_weights.name))
        values = pc.struct_field(values, of_ids.name)
    if pa.types.is_null(values.type):
        values = values.cast(pa.int64())
    if pa.types.is_dictionary(values.type):  # whose own nulls are no nulls of the list otherwise
        values = values.dictionary_decode()
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    is_float = pa.types.is_floating(values.type)
    missing = (
        np.asarray(pc.is_null(values, nan_is_null=is_float)) if values.null_count or is_float else np.zeros(0, bool)
    )
    if missing.any():
        row_errors.add(_rows_of(missing, lengths), feature.source, lambda row: "holds a null in a list; drop them")
        values = pc.if_else(pa.array(missing), _nothing(plain(values.type)), values)
    _check_weights(weights, lengths, feature.source, row_errors)
    return Flat(values, lengths, weights)


def _nothing(kind: pa.DataType) -> pa.Scalar:
    """In place of a null in a list, until its row is left out."""
    return pa.scalar("", kind) if is_text(kind) else pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)


def _with_weights(flat: Flat, column: pa.ChunkedArray, name: str, row_errors: RowErrors) -> Flat:
    array = _combined(column)
    if pa.types.is_null(array.type):
        array = pa.array([[]] * len(array), pa.list_(pa.float32()))
    given = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int32)
    weights = _floats(array.flatten())
    lengths = flat.counts
    wrong = given != lengths
    if wrong.any():
        row_errors.add(wrong, name, lambda row: f"holds {given[row]} weights for {lengths[row]} ids")
        weights = Ids(weights, given).blank(wrong).values
        kept = ~np.repeat(wrong, lengths)
        flat = Flat(flat.values.filter(pa.array(kept)), np.where(wrong, 0, lengths).astype(np.int32))
    _check_weights(weights, flat.counts, name, row_errors)
    return Flat(flat.values, flat.lengths, weights)


def _floats(values: pa.Array) -> np.ndarray:
    """[M] float32, NaN for null; of a number with more digits the nearest."""
    return np.asarray(pc.cast(values, pa.float32(), safe=False).fill_null(np.nan))


def _check_weights(weights: np.ndarray | None, lengths: np.ndarray, column: str, row_errors: RowErrors) -> None:
    if weights is not None and not np.isfinite(weights).all():
        wrong = _rows_of(~np.isfinite(weights), lengths)
        row_errors.add(wrong, column, lambda row: "holds a weight that is null or not finite")


def _shortened(flat: Flat, feature: SparseFeature, most: int, row_errors: RowErrors) -> Flat:
    """The last `most` ids of each row: position counted from the row's end decides."""
    lengths = flat.counts
    if feature.too_long == "error":
        row_errors.add(
            lengths > most, feature.source, lambda row: f"holds {lengths[row]} ids; its max_length is {most}"
        )
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat.values))
    kept = from_end <= most
    weights = None if flat.weights is None else flat.weights[kept]
    return Flat(flat.values.filter(pa.array(kept)), np.minimum(lengths, most), weights)


def _numbered(
    flat: Flat, feature: SparseFeature, rows: int, vocabulary: Vocabulary | None, row_errors: RowErrors
) -> np.ndarray:
    """[M] of an integer type."""
    values = flat.values
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if feature.transform == "vocabulary":
        assert vocabulary is not None
        return vocabulary.ids(values)
    if feature.transform == "bucketize":
        numbers = np.asarray(pc.cast(values, pa.float64(), safe=False))
        if np.isinf(numbers).any():
            wrong = _rows_of(np.isinf(numbers), flat.counts)
            row_errors.add(wrong, feature.source, lambda row: "holds an infinite number; take it out")
        return np.searchsorted(feature.boundaries or [], numbers, side="right").astype(np.int64)
    if feature.transform == "hash":
        is_words = is_text(values.type)
        hashes = hash_text(values, feature.seed) if is_words else hash_integers(np.asarray(values), feature.seed)
        return (hashes % np.uint64(rows)).astype(np.int64)
    ids = np.asarray(values)
    if feature.transform == "modulo":
        wide = ids if ids.dtype == np.uint64 else ids.astype(np.int64)
        return (wide % wide.dtype.type(rows)).astype(np.int64)
    return _in_range(ids, flat, feature, rows, row_errors)


def _in_range(ids: np.ndarray, flat: Flat, feature: SparseFeature, rows: int, row_errors: RowErrors) -> np.ndarray:
    # Seen as unsigned, a negative id is half of the type's numbers or more: one look instead of two.
    unsigned = ids.view(f"u{ids.dtype.itemsize}")
    most = min(rows, 2 ** (8 * ids.dtype.itemsize - 1)) if np.issubdtype(ids.dtype, np.signedinteger) else rows
    if not len(ids) or int(unsigned.max()) < most:
        return ids
    wrong = (ids < 0) | (ids >= rows)
    ends = np.cumsum(flat.counts)

    def describe(row: int) -> str:
        of_row = slice(ends[row] - flat.counts[row], ends[row])
        bad = ids[of_row][wrong[of_row]][0]
        remedy = f"raise tables.{feature.table}.rows" if bad >= 0 else "ids are not negative"
        return f"holds id {bad}, table '{feature.table}' has {rows} rows; {remedy}, or take a transform"

    row_errors.add(_rows_of(wrong, flat.counts), feature.source, describe)
    return np.where(wrong, 0, ids)


def _rows_of(wrong: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[M] bool of ids -> [N] bool of the rows they stand in."""
    rows = np.zeros(len(lengths), bool)
    rows[np.repeat(np.arange(len(lengths)), lengths)[wrong]] = True
    return rows


def _combined(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_map(column.type):
        column = column.cast(pa.list_(_item_type(column.type)))
    chunks = column.unify_dictionaries().chunks
    try:
        array = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    except pa.ArrowInvalid:  # more items than 32-bit offsets count
        array = pa.concat_arrays([chunk.cast(_large(column.type)) for chunk in chunks])
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_list(kind.value_type) if _is_list(kind) else pa.large_string() if is_text(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return any(is_such(kind) for is_such in (pa.types.is_list, pa.types.is_large_list, pa.types.is_map)) or (
        pa.types.is_fixed_size_list(kind)
    )


def _item_type(kind: pa.DataType) -> pa.DataType:
    return pa.struct({"key": kind.key_type, "value": kind.item_type}) if pa.types.is_map(kind) else kind.value_type


def _fields(struct: pa.StructType, of_weights: str) -> tuple[pa.Field, pa.Field] | None:
    """The ids' and the weights' field of a struct of these two."""
    fields = [struct.field(index) for index in range(struct.num_fields)]
    weights = [one for one in fields if one.name == of_weights]
    ids = [one for one in fields if one.name != of_weights]
    return (ids[0], weights[0]) if len(ids) == len(weights) == 1 else None
