"""The row groups of a split: listed from the footers, their columns checked.

What one rank lists is plain data, so that it can be given to the others: all then agree on the rows, whatever a store
shows them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec.data.ahead import read_ahead
from mtlrec.data.sources.arrow_types import common_schema, holds_text, is_text, item_type, plain
from mtlrec.data.sources.files import File, Store, find_files, persistently, store_of
from mtlrec.errors import DataError
from mtlrec.io import one_line

OnError = Literal["fail", "skip_file", "skip_row"]


@dataclass(frozen=True)
class RowGroup:
    file: File
    index: int
    rows: int


class ColumnUse(NamedTuple):
    """What reads a column: the job's key, the types it takes, and these in words."""

    key: str
    takes: Callable[[pa.DataType], bool]
    wants: str


class LeftOut(NamedTuple):
    """A file that is not read: why, and its rows, where its footer tells."""

    message: str
    rows: int | None


@dataclass(frozen=True)
class Dataset:
    """The row groups of a split, in the order of the files' names.

    Attributes:
        partition_types: of the columns that folders' names give
        left_out: files that are not among them
        kinds: of the columns that are read `text` or `numbers`, where any file tells
    """

    root: str
    row_groups: tuple[RowGroup, ...]
    partition_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.row_groups)

    @property
    def files(self) -> list[File]:
        return list(dict.fromkeys(group.file for group in self.row_groups))

    @property
    def fingerprint(self) -> str:
        """Of the names below the root and the row groups: equal where an epoch visits the same rows."""
        names = ";".join(f"{group.file.below_root}/{group.index}:{group.rows}" for group in self.row_groups)
        return hashlib.sha256(names.encode()).hexdigest()[:12]


def list_row_groups(
    root: str,
    patterns: Sequence[str],
    column_uses: Mapping[str, Sequence[ColumnUse]],
    on_error: OnError = "fail",
    retries: int = 3,
) -> Dataset:
    """Reads the footers of every matching file and checks that the columns that are read (`readers`' keys) are there,
    of types that their readers take.

    Raises DataError naming the pattern, file or column; with another `on_error` than `fail`, a file that cannot be read
    is left out instead, so long as one is left.
    """
    store = store_of(root)
    files = find_files(store, patterns)
    partition_types = _partition_types(files, column_uses)
    groups: list[RowGroup] = []
    left_out: list[LeftOut] = []
    known: dict[str, Known] = {}
    for file, found in zip(files, read_ahead(files, lambda file: _footer(store, file, retries), 8), strict=True):
        try:
            if isinstance(found, DataError):
                raise found
            with_file = dict(known)
            schema = found.schema.to_arrow_schema()
            for column, of in column_uses.items():
                _check_column(file, schema, partition_types, column, of, with_file)
            known = with_file
        except DataError as error:
            if on_error == "fail":
                raise
            left_out.append(LeftOut(str(error), None if isinstance(found, DataError) else found.num_rows))
            continue
        groups += [RowGroup(file, index, found.row_group(index).num_rows) for index in range(found.num_row_groups)]
    if not any(group.rows for group in groups):
        why = f"; {left_out[0].message}" if left_out else ""
        raise DataError(f"{', '.join(file.name for file in files[:3])}: no rows{why}")
    kinds = {column: "text" if holds_text(item_type(of.kind)) else "numbers" for column, of in known.items()}
    return Dataset(root, tuple(group for group in groups if group.rows), partition_types, tuple(left_out), kinds)


def _footer(store: Store, file: File, retries: int) -> pq.FileMetaData | DataError:
    """An error is returned: whether it ends the listing is not known here."""
    try:
        with persistently(lambda: store.system.open_input_file(file.key), store, retries) as source:
            return persistently(lambda: pq.read_metadata(source), store, retries)
    except (pa.ArrowException, OSError) as error:
        return DataError(f"{file.name}: not a readable Parquet file ({one_line(error)})")


def _partition_types(files: Sequence[File], column_uses: Mapping[str, Sequence[ColumnUse]]) -> dict[str, pa.DataType]:
    """A column of folders' names is what its readers take: text where all of them do, else a whole number; so that
    hashes of `day=1` do not depend on which other days are there. Where nothing reads it, the values decide."""
    types = {}
    for column in dict.fromkeys(column for file in files for column in file.partition):
        if column_uses.get(column):
            is_words = all(reader.takes(pa.string()) for reader in column_uses[column])
        else:
            is_words = not all(_is_whole(file.partition.get(column)) for file in files)
        types[column] = pa.string() if is_words else pa.int64()
    return types


def _is_whole(value: str | None) -> bool:
    return value is None or (value.removeprefix("-").isdecimal() and len(value) < 19)


class Known(NamedTuple):
    """A column of the files so far: the first that has it, and the type that holds all of them."""

    file: str
    kind: pa.DataType


def _check_column(
    file: File,
    schema: pa.Schema,
    partition_types: Mapping[str, pa.DataType],
    column: str,
    column_uses: Sequence[ColumnUse],
    known: dict[str, Known],
) -> None:
    """There, once, of a type that its readers take and that goes together with that of the files before."""
    count = schema.names.count(column)
    in_names = column in file.partition
    if count + in_names != 1:
        what = "no column" if count + in_names == 0 else f"{count + in_names} columns called"
        by = f", which {column_uses[0].key} reads" if column_uses else ""
        raise DataError(
            f"{file.name}: {what} '{column}'{by}; the file has {', '.join([*schema.names, *file.partition])}"
        )
    kind = partition_types[column] if in_names else plain(schema.field(column).type)
    if in_names and not (is_text(kind) or _is_whole(file.partition[column])):
        value = file.partition[column]
        by = f"; {column_uses[0].key} takes {column_uses[0].wants}" if column_uses else ""
        raise DataError(f"{file.name}: {column}={value} is no whole number{by}")
    if pa.types.is_null(item_type(kind)):  # nothing is known in this file
        return
    for reader in column_uses:
        if not reader.takes(kind):
            raise DataError(f"{file.name}: column '{column}' is {kind}; {reader.key} takes {reader.wants}")
    first = known.get(column, Known(file.name, kind))
    try:
        wide = common_schema([pa.schema([(column, one)]) for one in (first.kind, kind)]).field(column).type
    except DataError:
        wide = None
    if wide is None or not all(reader.takes(wide) for reader in column_uses):
        raise DataError(f"{file.name}: column '{column}' is {kind}, in {first.file} it is {first.kind}")
    known[column] = Known(first.file, wide)


def read_schema(dataset: Dataset, file: File) -> pa.Schema:
    """The file's columns, those of its folders' names behind them."""
    with store_of(dataset.root).system.open_input_file(file.key) as source:
        schema = pq.read_schema(source)
    for column in file.partition:
        if column not in schema.names:
            schema = schema.append(pa.field(column, dataset.partition_types[column]))
    return schema.remove_metadata()
