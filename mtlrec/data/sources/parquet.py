"""Row groups read as Arrow, several ahead, each once for all windows that have rows of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

from mtlrec.data.ahead import read_ahead
from mtlrec.data.order import Piece, Window
from mtlrec.data.sources.arrow_types import common_schema, is_text
from mtlrec.data.sources.dataset import Dataset, OnError, RowGroup
from mtlrec.data.sources.files import File, persistently, store_of
from mtlrec.errors import DataError
from mtlrec.io import one_line

Item = TypeVar("Item")


@dataclass(frozen=True)
class WindowTable:
    """A window's rows as Arrow, in the order of the files, and where each comes from."""

    table: pa.Table
    row_groups: tuple[RowGroup, ...]
    pieces: tuple[Piece, ...]
    piece_errors: tuple[str | None, ...]
    """What kept a piece from being read; its rows are null."""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group.file.name for group in self.row_groups))

    def piece_of(self, row: int) -> int:
        return int(np.searchsorted(np.cumsum([len(piece) for piece in self.pieces]), row, side="right"))

    def where(self, row: int) -> str:
        """File, row group and the row's number in it."""
        index = self.piece_of(row)
        before = sum(len(piece) for piece in self.pieces[:index])
        group = self.row_groups[index]
        return f"{group.file.name}: row group {group.index}, row {self.pieces[index].rows[row - before]}"


class RowGroupReader:
    """Reads windows of a data set.

    Args:
        columns: which; None reads all
        on_error: `fail` raises where a row group cannot be read, otherwise its rows are null and said to be at fault
        retries: how often to try again where the store is not a local disk
        check: raises DataError for what a whole row group must not hold, which is then as if it could not be read
    """

    def __init__(
        self,
        dataset: Dataset,
        columns: Sequence[str] | None,
        on_error: OnError = "fail",
        retries: int = 3,
        check: Callable[[WindowTable], object] | None = None,
    ) -> None:
        self.dataset, self.columns, self.on_error, self.retries, self.check = dataset, columns, on_error, retries, check
        self.store = store_of(dataset.root)
        self._footer = lru_cache(maxsize=32)(self._read_footer)

    def windows(self, windows: Sequence[Window], ahead: int = 1) -> Generator[tuple[Window, WindowTable]]:
        """The windows' rows in turn; `ahead` row groups are being read beyond those of the window at hand."""
        runs = [list(run) for _, run in groupby((piece for one in windows for piece in one.pieces), _group_of)]
        read = read_ahead(runs, self._read, ahead)
        try:
            pieces = _one_by_one(read)
            for window in windows:
                yield window, self._rows(window, list(islice(pieces, len(window.pieces))))
        finally:
            read.close()

    def _rows(self, window: Window, pieces: Sequence[tuple[pa.Table, str | None]]) -> WindowTable:
        tables, row_errors = zip(*pieces, strict=True)
        groups = tuple(self.dataset.row_groups[piece.group] for piece in window.pieces)
        return WindowTable(stacked(tables), groups, window.pieces, row_errors)

    def nothing(self) -> pa.Table:
        """The columns without rows, of types that nobody knows."""
        return _unknown(self.columns or [], 0)

    def first_rows(self, index: int, most: int) -> pa.Table:
        """Of one row group. Raises DataError."""
        group = self.dataset.row_groups[index]
        try:
            with self._opened(group.file) as (source, columns):
                batches = source.iter_batches(min(most, group.rows), [group.index], columns)
                return self._with_partition(pa.Table.from_batches([next(batches)]), group.file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{group.file.name}: row group {group.index} cannot be read ({one_line(error)})") from None

    def _read(self, run: Sequence[Piece]) -> list[tuple[pa.Table, str | None]]:
        """Pieces of one row group, which is read once: each one's rows, or nulls and what kept them from being read."""
        group = self.dataset.row_groups[run[0].group]
        try:
            table = persistently(lambda: self._row_group(group), self.store, self.retries)
            if self.check is not None:
                self.check(WindowTable(table, (group,), (Piece(run[0].group, range(group.rows)),), (None,)))
        except DataError as error:
            message = str(error)
        except (pa.ArrowException, OSError) as error:
            message = f"{group.file.name}: row group {group.index} cannot be read ({one_line(error)})"
        else:
            return [(_rows_of(table, piece), None) for piece in run]
        if self.on_error == "fail":
            raise DataError(message)
        return [(_unknown(self.columns or [], len(piece)), message) for piece in run]

    def _row_group(self, group: RowGroup) -> pa.Table:
        with self._opened(group.file) as (source, columns):
            return self._with_partition(source.read_row_group(group.index, columns=columns), group.file)

    @contextmanager
    def _opened(self, file: File) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
        """The file, and which of the columns it has. Raises DataError where it is not as it was listed."""
        now = self.store.system.get_file_info(file.key)
        if (now.size or 0, now.mtime_ns) != (file.size, file.modified):
            what = "is gone" if now.type == FileType.NotFound else "has changed"
            raise DataError(f"{file.name}: {what} since the job began; let nobody write there, or start again")
        footer = self._footer(file)
        with self.store.system.open_input_file(file.key) as handle:
            source = pq.ParquetFile(handle, metadata=footer, pre_buffer=not self.store.is_local)
            there = source.schema_arrow.names
            yield source, there if self.columns is None else [column for column in self.columns if column in there]

    def _read_footer(self, file: File) -> pq.FileMetaData:
        with self.store.system.open_input_file(file.key) as handle:
            return pq.read_metadata(handle)

    def _with_partition(self, table: pa.Table, file: File) -> pa.Table:
        """And the columns that the names of the file's folders give."""
        for column, value in file.partition.items():
            if (self.columns is None or column in self.columns) and column not in table.column_names:
                kind = self.dataset.partition_types[column]
                scalar = pa.scalar(value if value is None or is_text(kind) else int(value), kind)
                table = table.append_column(column, pa.repeat(scalar, table.num_rows))
        return table


def _unknown(columns: Sequence[str], rows: int) -> pa.Table:
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


def stacked(tables: Sequence[pa.Table]) -> pa.Table:
    """One table, of the files' common types."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        schema = common_schema([table.schema for table in tables])
    cast = [table.cast(pa.schema([schema.field(name) for name in table.schema.names]), safe=False) for table in tables]
    return pa.concat_tables(cast, promote_options="permissive")
