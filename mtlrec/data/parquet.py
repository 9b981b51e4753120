"""Row groups read as Arrow, several ahead, each once for all windows that have rows of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec.data.ahead import read_ahead
from mtlrec.data.dataset import Dataset, OnError, RowGroup, common_schema, is_text, read_schema
from mtlrec.data.errors import DataError
from mtlrec.data.files import one_line, persistently, store_of
from mtlrec.data.order import Piece, Window

Item = TypeVar("Item")


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


def stacked(tables: Sequence[pa.Table]) -> pa.Table:
    """One table, of the files' common types."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        schema = common_schema([table.schema for table in tables])
    cast = [table.cast(pa.schema([schema.field(name) for name in table.schema.names])) for table in tables]
    return pa.concat_tables(cast, promote_options="permissive")
