"""Row groups: listed from the footers with their columns checked, and read as Arrow, several ahead.

What one rank lists is plain data, so that it can be given to the others: all then agree on the rows, whatever a store
shows them.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec.data.errors import DataError
from mtlrec.data.files import File, Store, find_files, one_line, store_of
from mtlrec.data.order import Piece, Window

FIRST_PAUSE_S = 0.2
"""Before a read over the network is tried again; the next pause is twice as long, and so on."""
OnError = Literal["fail", "skip_file", "skip_row"]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RowGroup:
    file: File
    index: int
    rows: int


class Reader(NamedTuple):
    """What reads a column: the job's key, the types it takes, and these in words."""

    key: str
    takes: Callable[[pa.DataType], bool]
    wants: str


@dataclass(frozen=True)
class Dataset:
    """The row groups of a split, in the order of the files' names; `left_out` says which files are not among them."""

    root: str
    groups: tuple[RowGroup, ...]
    partition_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def files(self) -> list[File]:
        return list(dict.fromkeys(group.file for group in self.groups))

    @property
    def fingerprint(self) -> str:
        """Of the names below the root and the row groups: equal where an epoch visits the same rows."""
        names = ";".join(f"{group.file.below_root}/{group.index}:{group.rows}" for group in self.groups)
        return hashlib.sha256(names.encode()).hexdigest()[:12]


def list_row_groups(
    root: str,
    patterns: Sequence[str],
    readers: Mapping[str, Sequence[Reader]],
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
    partition_types = _partition_types(files)
    groups: list[RowGroup] = []
    left_out: list[str] = []
    first_types: dict[str, tuple[str, pa.DataType]] = {}
    for file, found in zip(files, read_ahead(files, lambda file: _footer(store, file, retries), 8), strict=True):
        try:
            if isinstance(found, DataError):
                raise found
            for column, of in readers.items():
                _check_column(file, _schema(found), partition_types, column, of, first_types)
        except DataError as error:
            if on_error == "fail":
                raise
            left_out.append(str(error))
            continue
        groups += [RowGroup(file, index, found.row_group(index).num_rows) for index in range(found.num_row_groups)]
    if not any(group.rows for group in groups):
        why = f"; {left_out[0]}" if left_out else ""
        raise DataError(f"{', '.join(file.name for file in files[:3])}: no rows{why}")
    return Dataset(root, tuple(group for group in groups if group.rows), partition_types, tuple(left_out))


def _footer(store: Store, file: File, retries: int) -> pq.FileMetaData | DataError:
    """An error is returned: whether it ends the listing is not known here."""
    try:
        with persistently(lambda: store.system.open_input_file(file.key), store, retries) as source:
            return persistently(lambda: pq.read_metadata(source), store, retries)
    except (pa.ArrowException, OSError) as error:
        return DataError(f"{file.name}: not a readable Parquet file ({one_line(error)})")


def _schema(metadata: pq.FileMetaData) -> pa.Schema:
    return metadata.schema.to_arrow_schema()


def _partition_types(files: Sequence[File]) -> dict[str, pa.DataType]:
    """A column that the folders' names give is int64 where every value of it is a whole number, else text."""
    values: dict[str, list[str | None]] = {}
    for file in files:
        for column, value in file.partition.items():
            values.setdefault(column, []).append(value)
    whole = {column: all(value is None or _is_whole(value) for value in given) for column, given in values.items()}
    return {column: pa.int64() if is_whole else pa.string() for column, is_whole in whole.items()}


def _is_whole(value: str) -> bool:
    return value.removeprefix("-").isdecimal() and len(value) < 19


def _check_column(
    file: File,
    schema: pa.Schema,
    partition_types: Mapping[str, pa.DataType],
    column: str,
    readers: Sequence[Reader],
    first_types: dict[str, tuple[str, pa.DataType]],
) -> None:
    """There, once, and of a kind with the same column of the first file (`first_types` remembers it)."""
    count = schema.names.count(column)
    in_names = column in file.partition
    if count + in_names != 1:
        what = "no column" if count + in_names == 0 else f"{count + in_names} columns called"
        by = f", which {readers[0].key} reads" if readers else ""
        raise DataError(
            f"{file.name}: {what} '{column}'{by}; the file has {', '.join([*schema.names, *file.partition])}"
        )
    kind = partition_types[column] if in_names else plain(schema.field(column).type)
    if pa.types.is_null(kind):  # nothing is known in this file
        return
    for reader in readers:
        if not reader.takes(kind):
            raise DataError(f"{file.name}: column '{column}' is {kind}; {reader.key} takes {reader.wants}")
    first, first_kind = first_types.setdefault(column, (file.name, kind))
    for is_such in (is_text, pa.types.is_nested):
        if is_such(kind) != is_such(first_kind):
            raise DataError(f"{file.name}: column '{column}' is {kind}, in {first} it is {first_kind}")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values where they are kept as a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    is_exact = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    return is_exact or pa.types.is_floating(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# ---- reading


@dataclass(frozen=True)
class Rows:
    """A window's rows as Arrow, in the order of the files, and where each comes from."""

    table: pa.Table
    groups: tuple[RowGroup, ...]
    pieces: tuple[Piece, ...]
    faults: tuple[str | None, ...]
    """What kept a piece from being read; its rows are null."""

    @property
    def files(self) -> str:
        return ", ".join(dict.fromkeys(group.file.name for group in self.groups))

    def piece_of(self, row: int) -> int:
        return int(np.searchsorted(np.cumsum([len(piece) for piece in self.pieces]), row, side="right"))

    def where(self, row: int) -> str:
        """File, row group and the row's number in it."""
        index = self.piece_of(row)
        before = sum(len(piece) for piece in self.pieces[:index])
        group = self.groups[index]
        return f"{group.file.name}: row group {group.index}, row {self.pieces[index].rows[row - before]}"


class RowGroupReader:
    """Reads windows of a data set.

    Args:
        columns: which; None reads all
        on_error: `fail` raises where a row group cannot be read, otherwise its rows are null and said to be at fault
        retries: how often to try again where the store is not a local disk
    """

    def __init__(
        self, dataset: Dataset, columns: Sequence[str] | None, on_error: OnError = "fail", retries: int = 3
    ) -> None:
        self.dataset, self.columns, self.on_error, self.retries = dataset, columns, on_error, retries
        self.store = store_of(dataset.root)

    def windows(self, windows: Sequence[Window], ahead: int = 2) -> Generator[tuple[Window, Rows]]:
        """The windows' rows in turn; `ahead` row groups are being read beyond those of the window at hand."""
        runs = [list(run) for _, run in groupby((piece for one in windows for piece in one.pieces), _group_of)]
        read = read_ahead(runs, self._read, ahead)
        try:
            pieces = _one_by_one(read)
            for window in windows:
                yield window, self._rows(window, list(islice(pieces, len(window.pieces))))
        finally:
            read.close()

    def _rows(self, window: Window, pieces: Sequence[tuple[pa.Table, str | None]]) -> Rows:
        tables, faults = zip(*pieces, strict=True)
        groups = tuple(self.dataset.groups[piece.group] for piece in window.pieces)
        return Rows(stacked(tables), groups, window.pieces, faults)

    def nothing(self) -> pa.Table:
        """No rows, of the first file's types."""
        return self._read([Piece(0, range(0))])[0][0]

    def first_rows(self, group: int, most: int) -> pa.Table:
        """Of one row group."""
        rows = min(most, self.dataset.groups[group].rows)
        return self._read([Piece(group, range(rows))])[0][0]

    def _read(self, run: Sequence[Piece]) -> list[tuple[pa.Table, str | None]]:
        """Pieces of one row group, which is read once: each one's rows, or nulls and what kept them from being read."""
        group = self.dataset.groups[run[0].group]
        try:
            table = persistently(lambda: self._row_group(group), self.store, self.retries)
        except (pa.ArrowException, OSError, DataError) as error:
            fault = str(error) if isinstance(error, DataError) else f"cannot be read ({one_line(error)})"
            message = f"{group.file.name}: row group {group.index} {fault}"
            if self.on_error == "fail":
                raise DataError(message) from None
            return [(self._unknown(len(piece)), message) for piece in run]
        return [(_rows_of(table, piece), None) for piece in run]

    def _row_group(self, group: RowGroup) -> pa.Table:
        file = group.file
        now = self.store.system.get_file_info(file.key)
        if (now.size or 0, now.mtime_ns) != (file.size, file.modified):
            raise DataError("has changed since the job began; let nobody write there, or start again")
        with pq.ParquetFile(self.store.system.open_input_file(file.key), pre_buffer=not self.store.is_local) as source:
            there = source.schema_arrow.names
            columns = there if self.columns is None else [column for column in self.columns if column in there]
            table = source.read_row_group(group.index, columns=columns)
        for column, value in file.partition.items():
            if (self.columns is None or column in self.columns) and column not in there:
                kind = self.dataset.partition_types[column]
                scalar = pa.scalar(value if value is None or is_text(kind) else int(value), kind)
                table = table.append_column(column, pa.repeat(scalar, table.num_rows))
        return table

    def _unknown(self, rows: int) -> pa.Table:
        columns = self.columns
        if columns is None:
            columns = read_schema(self.dataset, self.dataset.groups[0].file).names
        return pa.table({column: pa.nulls(rows) for column in columns})


def _one_by_one(runs: Iterable[list[Item]]) -> Iterator[Item]:
    """The items of all runs; none is kept that has been taken."""
    for run in runs:
        while run:
            yield run.pop(0)


def _group_of(piece: Piece) -> int:
    return piece.group


def _rows_of(table: pa.Table, piece: Piece) -> pa.Table:
    return (
        table.slice(piece.rows.start, len(piece)) if isinstance(piece.rows, range) else table.take(pa.array(piece.rows))
    )


def read_schema(dataset: Dataset, file: File) -> pa.Schema:
    """The file's columns, those of its folders' names behind them."""
    with store_of(dataset.root).system.open_input_file(file.key) as source:
        schema = pq.read_schema(source)
    for column in file.partition:
        schema = schema.append(pa.field(column, dataset.partition_types[column]))
    return schema.remove_metadata()


def stacked(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; a column that is int32 in one file and int64 in another becomes the wider."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the files' columns have different types ({one_line(error)})") from None


def persistently(attempt: Callable[[], Result], store: Store, retries: int) -> Result:
    """The attempt's result; where a store over the network fails, it is made again, `retries` times."""
    for tried in range(retries):
        try:
            return attempt()
        except OSError:
            if store.is_local:
                raise
            time.sleep(FIRST_PAUSE_S * 2**tried)
    return attempt()


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result], ahead: int) -> Generator[Result]:
    """`read` of every item, in order, on `ahead` threads that are at most so many items before the consumer."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="mtlrec-read")
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
