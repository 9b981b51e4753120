"""Arrow's types as columns of files have them: numbers, text, lists of these, and the type that holds several."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from mtlrec.errors import DataError
from mtlrec.io import one_line


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values where they are kept as a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """All columns of files that were not written alike, each of a type that holds every file's values: of int32 and
    int64 the wider, of text and a dictionary of text the text, of booleans and integers integers.

    Raises DataError where there is none, as for numbers and text.
    """
    kinds: dict[str, set[pa.DataType]] = {}
    for schema in schemas:
        for column in schema:
            kinds.setdefault(column.name, set()).add(column.type)
    for name, of in kinds.items():
        items = [plain(item_type(kind)) for kind in of]
        if pa.uint64() in items and any(map(pa.types.is_signed_integer, items)):  # no integer holds both
            raise DataError(f"column '{name}' is uint64 in one file and a signed integer in another; write one of them")
    loose = [
        pa.schema([one.with_type(_loose(one.type)) if len(kinds[one.name]) > 1 else one for one in schema])
        for schema in schemas
    ]
    try:
        return pa.unify_schemas(loose, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the files' columns have different types ({one_line(error)})") from None


def _loose(kind: pa.DataType) -> pa.DataType:
    """The type whose values Arrow brings together with those of others."""
    kind = plain(kind)
    if pa.types.is_boolean(kind):
        return pa.uint8()
    if pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_float16(kind):
        return pa.float32()
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return pa.list_(_loose(kind.value_type)) if is_list else kind


def item_type(kind: pa.DataType) -> pa.DataType:
    """Of a list its items', else the type itself."""
    is_list = any(is_such(kind) for is_such in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    return kind.value_type if is_list else kind


def is_number(kind: pa.DataType) -> bool:
    is_exact = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    return is_exact or pa.types.is_floating(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def holds_text(kind: pa.DataType) -> bool:
    """Or ids of text beside their weights, in a struct or a map."""
    if pa.types.is_map(kind):
        return is_text(plain(kind.key_type)) or is_text(plain(kind.item_type))
    if pa.types.is_struct(kind):
        return any(is_text(plain(kind.field(index).type)) for index in range(kind.num_fields))
    return is_text(plain(kind))
