"""Vocabularies: a text file of one value per line; line n is id n, and what is not there is id 0."""

from __future__ import annotations

import pyarrow as pa

from mtlrec.config import SparseFeature
from mtlrec.data.errors import DataError
from mtlrec.data.files import one_line, store_of


def read_vocabulary(root: str, feature: SparseFeature, rows: int) -> pa.Array:
    """The values as text, in the order of their ids. Raises DataError where it cannot be read or outgrows its table."""
    assert feature.vocabulary is not None
    store = store_of(root)
    key = feature.vocabulary if feature.vocabulary.startswith("/") else f"{store.base}/{feature.vocabulary}"
    where = f"features.sparse.{feature.name}.vocabulary: {store.name(key)}"
    try:
        with store.system.open_input_stream(key) as source:
            lines = source.read().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({one_line(error)})") from None
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text") from None
    if len(lines) >= rows:
        message = (
            f"has {len(lines):,} values, and row 0 is for what it lacks; table '{feature.table}' has {rows:,} rows"
        )
        raise DataError(f"{where}: {message}")
    if len(set(lines)) < len(lines):
        twice = next(line for index, line in enumerate(lines) if line in lines[:index])
        raise DataError(f"{where}: holds '{twice}' twice")
    return pa.array(lines, pa.string())
