"""Raw rows from anywhere become Arrow columns of the types that features take; a value that cannot is its row's fault.

Columns come as Arrow, NumPy or Python lists. As a whole a column is converted at once; only where that fails, or gives
a type that no feature takes, are its values looked at one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlrec.data.features.row_errors import RowErrors
from mtlrec.data.sources.arrow_types import common_schema, item_type, plain
from mtlrec.data.sources.dataset import ColumnUse
from mtlrec.errors import DataError

RawRows: TypeAlias = Mapping[str, Any] | pa.RecordBatch | pa.Table
NO_HOLDERS = (str, bytes, bytearray, memoryview)
SCALARS = (pa.int64(), pa.float64(), pa.string())
LEVELS = 4
"""Of what a column may hold: lists of structs of numbers, and one more where a value is looked at alone."""
WORDS = 60
"""Characters of a value that a message shows."""


def columns_of(rows: RawRows, read: Collection[str]) -> tuple[dict[str, Any], int]:
    """The columns that are read, by name, and how many rows they have; where none of them is there, the others tell.

    Raises DataError where that number is not certain.
    """
    if isinstance(rows, pa.RecordBatch | pa.Table):
        names = rows.schema.names
        twice = [name for name in read if names.count(name) > 1]
        if twice:
            raise DataError(f"rows: several columns are called {', '.join(twice)}; keep one")
        return {name: rows.column(names.index(name)) for name in read if name in names}, rows.num_rows
    if not isinstance(rows, Mapping):
        raise DataError(f"rows: {type(rows).__name__} given; a dict of columns, or an Arrow batch or table, is wanted")
    used = {name: values for name, values in rows.items() if name in read} or dict(rows)
    lengths = {name: _length(name, values) for name, values in used.items()}
    if not lengths:
        raise DataError("rows: no columns; name at least one, so that their number is known")
    if len(set(lengths.values())) > 1:
        longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
        raise DataError(
            f"rows: column {shown(longest)} has {lengths[longest]} values and {shown(shortest)} {lengths[shortest]}; "
            "give each row one of each"
        )
    return used, next(iter(lengths.values()))


def _length(name: str, values: Any) -> int:
    try:
        if not isinstance(values, str | bytes | Mapping | Set):
            iter(values)
            return len(values)
    except TypeError:  # one value, an iterator, a NumPy array without axes
        pass
    raise DataError(f"rows: column {shown(name)} is no list; give one, with a value for each row")


def arrow_column(
    values: Any, rows: int, name: str, column_uses: Sequence[ColumnUse], row_errors: RowErrors
) -> pa.ChunkedArray:
    """A column that all of `column_uses` take, null where a value is no such thing."""
    found = _as_a_whole(values)
    if found is not None and _is_taken(found.type, column_uses):
        column = pa.chunked_array([found]) if isinstance(found, pa.Array) else found
    else:
        column = _one_by_one(list(_values(values)), name, column_uses, row_errors)
    if len(column) != rows:
        raise DataError(f"rows: column '{name}' says that it has {rows} values and gives {len(column)}; give a list")
    return column


def _as_a_whole(values: Any) -> pa.Array | pa.ChunkedArray | None:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        return None if _is_deep(values) else pa.array(values)
    except OverflowError:  # of int64
        return _unsigned(values)
    except Exception:  # the values are anybody's: whatever their conversion raises, they are looked at one by one
        return None


def _unsigned(values: Any) -> pa.Array | None:
    for kind in (pa.uint64(), pa.list_(pa.uint64())):
        try:
            return pa.array(values, kind)
        except Exception:  # as there
            continue
    return None


def _is_deep(values: Iterable[Any]) -> bool:
    """Nested deeper than any feature is. Arrow recurses, and a list that holds itself ends the process."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return False
    level = values
    for _ in range(LEVELS):
        kinds = [kind for kind in set(map(type, level)) if not issubclass(kind, NO_HOLDERS)]
        held = tuple(kind for kind in kinds if issubclass(kind, Iterable))
        if not held:
            return False
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, held))
        level = [item for of_one in inner for item in of_one]
    return True


def _values(values: Any) -> Iterable[Any]:
    """One by one, None for what is missing in a masked array or in pandas' ways."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return map(python_value, values)
    if isinstance(values, np.ma.MaskedArray):
        return list(values.tolist())
    if callable(getattr(values, "isna", None)):
        return [None if is_missing else value for value, is_missing in zip(values, values.isna(), strict=True)]
    return iter(values)


def python_value(value: Any) -> Any:
    """Of Arrow's; what Python has no value for, as dates beyond its calendar, stays what it is: no feature takes it."""
    try:
        return value.to_pylist() if isinstance(value, pa.Array | pa.ChunkedArray) else value.as_py()
    except Exception:  # each type has its own
        return value


def _is_taken(kind: pa.DataType, column_uses: Sequence[ColumnUse]) -> bool:
    if pa.types.is_null(kind):
        return True
    if pa.types.is_dictionary(kind) and pa.types.is_nested(kind.value_type):
        return False  # Arrow cannot unify such
    if pa.types.is_null(item_type(kind)):  # lists, all of them empty or of nulls
        return not any(_takes_single_values_alone(reader) for reader in column_uses)
    return all(reader.takes(plain(kind)) for reader in column_uses)


def _takes_single_values_alone(reader: ColumnUse) -> bool:
    return any(reader.takes(kind) and not reader.takes(pa.list_(kind)) for kind in SCALARS)


def _one_by_one(
    values: list[Any], name: str, column_uses: Sequence[ColumnUse], row_errors: RowErrors
) -> pa.ChunkedArray:
    singles: list[pa.Array | None] = [_single(value, column_uses) for value in values]
    common = _common_type([one for one in singles if one is not None], column_uses)
    cast = [None if one is None else _cast(one, common) for one in singles]
    wrong = np.array([one is None for one in cast], bool)
    wants = "; ".join(f"{reader.key} takes {reader.wants}" for reader in column_uses)
    row_errors.add(wrong, name, lambda row: f"holds {shown(values[row])}; {wants}")
    nothing = pa.nulls(1, common)
    return pa.chunked_array([nothing if one is None else one for one in cast], common)


def _single(value: Any, column_uses: Sequence[ColumnUse]) -> pa.Array | None:
    """The value as a column of one row; None where no reader takes it."""
    found = _as_a_whole([value])
    if isinstance(found, pa.Array) and _is_taken(found.type, column_uses):
        return found
    return None


def _common_type(singles: Sequence[pa.Array], column_uses: Sequence[ColumnUse]) -> pa.DataType:
    """A type for all values, or for those like the first: lists where any value is one, text where numbers and text
    meet and the readers take text."""
    kinds = list(dict.fromkeys(one.type for one in singles if not pa.types.is_null(one.type)))
    if not kinds:
        return pa.null()
    has_lists = any(map(pa.types.is_list, kinds))
    items = [kind for kind in dict.fromkeys(map(item_type, kinds)) if not pa.types.is_null(kind)] or [pa.null()]
    for item in (_common_item(items), pa.string(), *items):
        wide = pa.list_(item) if has_lists and item is not None else item
        if wide is not None and _is_taken(wide, column_uses):
            return wide
    return kinds[0]


def _common_item(items: Sequence[pa.DataType]) -> pa.DataType | None:
    """uint64 where an integer is too large for int64; None where nothing holds all."""
    if len(items) > 1 and all(map(pa.types.is_integer, items)) and pa.uint64() in items:
        return pa.uint64()
    try:
        return common_schema([pa.schema([("", item)]) for item in items]).field(0).type
    except DataError:
        return None


def _cast(one: pa.Array, common: pa.DataType) -> pa.Array | None:
    if pa.types.is_list(common) and not pa.types.is_list(one.type) and one[0].is_valid:
        one = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), one)
    if one.type == common:
        return one
    try:
        return pc.cast(one, common)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return None


def shown(value: Any) -> str:
    """In a message; nobody's __repr__ is trusted to work or to be short."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= WORDS else f"{text[: WORDS - 3]}..."
