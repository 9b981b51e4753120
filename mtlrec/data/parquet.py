"""Which rank reads which rows, in which order: from the Parquet footers alone.

Every rank lists the same files in the same order, permutes the row groups by (seed, epoch) and takes its contiguous
share of the rows, equal to within one row. The share is read in windows of at least `shuffle_buffer` rows; the rows of
a window are permuted by (seed, epoch, rank, window). So the whole order of an epoch is known before a row is read, and
a position in it is one number, the batches already taken: resuming skips windows without reading them.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Shuffle = Literal["none", "row_group", "rows"]


class DataError(ValueError):
    """Something in the user's files; the message names the file."""


@dataclass(frozen=True)
class RowGroup:
    path: Path
    index: int
    rows: int


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one row group."""

    group: RowGroup
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Reader(NamedTuple):
    """What reads a column: the job's key, the types it takes, and these in words."""

    key: str
    takes: Callable[[pa.DataType], bool]
    wants: str


def list_row_groups(
    root: Path, patterns: Sequence[str], columns: Sequence[str], readers: Mapping[str, Sequence[Reader]] | None = None
) -> list[RowGroup]:
    """Reads the footers of every matching file, in sorted order, and checks that all `columns` are there, of types that
    their readers take.

    Raises DataError naming the pattern, file or column that is missing or of another type.
    """
    paths = list(dict.fromkeys(path for pattern in patterns for path in _matches(root, pattern)))
    groups: list[RowGroup] = []
    types: dict[str, tuple[Path, pa.DataType]] = {}
    for path in paths:
        metadata = _footer(path)
        schema = metadata.schema.to_arrow_schema()
        for column in columns:
            _check_column(path, schema, column, types, (readers or {}).get(column, ()))
        groups += [RowGroup(path, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    if not any(group.rows for group in groups):
        raise DataError(f"{', '.join(map(str, paths))}: no rows")
    return [group for group in groups if group.rows]


def _matches(root: Path, pattern: str) -> list[Path]:
    """The pattern's files in sorted order. `root` is literal, brackets and all; an absolute pattern needs none."""
    whole = pattern if Path(pattern).is_absolute() else str(Path(glob.escape(str(root))) / pattern)
    found = sorted(Path(path) for path in glob.glob(whole, recursive=True))
    for path in found:
        if not path.is_file():
            raise DataError(f"{path}: matches {pattern} but is a folder or a broken link; name files only")
    if not found:
        raise DataError(f"no file matches {root / pattern}; check data.root and the data.train/valid/test patterns")
    return found


def _check_column(
    path: Path,
    schema: pa.Schema,
    column: str,
    types: dict[str, tuple[Path, pa.DataType]],
    readers: Sequence[Reader],
) -> None:
    """There, once, and of a kind with the same column of the first file (`types` remembers it)."""
    count = schema.names.count(column)
    if count != 1:
        what = "no column" if count == 0 else f"{count} columns called"
        by = f", which {readers[0].key} reads" if readers else ""
        raise DataError(f"{path}: {what} '{column}'{by}; the file has {', '.join(schema.names)}")
    kind = schema.field(column).type
    if pa.types.is_null(kind):  # nothing is known in this file
        return
    for reader in readers:
        if not reader.takes(kind):
            raise DataError(f"{path}: column '{column}' is {kind}; {reader.key} takes {reader.wants}")
    first, first_kind = types.setdefault(column, (path, kind))
    for is_such in (pa.types.is_string, pa.types.is_nested):
        if is_such(kind) != is_such(first_kind):
            raise DataError(f"{path}: column '{column}' is {kind}, in {first} it is {first_kind}")


def fingerprint(groups: Sequence[RowGroup]) -> str:
    """Of the files' names and row groups: equal where an epoch visits the same rows. Folders may have moved."""
    names = ";".join(f"{group.path.name}/{group.index}:{group.rows}" for group in groups)
    return hashlib.sha256(names.encode()).hexdigest()[:12]


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({_words(error)})") from None


def share(rows: int, rank: int, world_size: int) -> range:
    """The rank's rows; sizes differ by at most one."""
    return range(rows * rank // world_size, rows * (rank + 1) // world_size)


def windows_of_rank(
    groups: Sequence[RowGroup],
    rank: int,
    world_size: int,
    shuffle: Shuffle = "none",
    shuffle_buffer: int = 1,
    seed: int = 0,
    epoch: int = 0,
) -> list[list[Slice]]:
    """The rank's share of the epoch, cut into windows of at least `shuffle_buffer` rows (the last may be smaller)."""
    order = np.arange(len(groups))
    if shuffle != "none":
        np.random.default_rng([seed, epoch]).shuffle(order)
    mine = share(sum(group.rows for group in groups), rank, world_size)
    windows: list[list[Slice]] = [[]]
    first = 0
    for position in order.tolist():
        group = groups[position]
        start, stop = max(mine.start - first, 0), min(mine.stop - first, group.rows)
        first += group.rows
        if start >= stop:
            continue
        if sum(map(len, windows[-1])) >= shuffle_buffer:
            windows.append([])
        windows[-1].append(Slice(group, start, stop))
    return [window for window in windows if window]


def read_window(window: Sequence[Slice], columns: Sequence[str] | None, rng: np.random.Generator | None) -> pa.Table:
    """The window's rows as one table, permuted where an `rng` is given. `columns=None` reads all."""
    tables = []
    for piece in window:
        try:
            table = _open(piece.group.path).read_row_group(
                piece.group.index, columns=None if columns is None else list(columns)
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{piece.group.path}: row group {piece.group.index} cannot be read ({_words(error)})"
            ) from None
        tables.append(table.slice(piece.start, len(piece)))
    table = _stacked(tables)
    return table if rng is None else table.take(pa.array(rng.permutation(table.num_rows)))


def _words(error: Exception) -> str:
    return " ".join(str(error).split())


def _stacked(tables: Sequence[pa.Table]) -> pa.Table:
    """One table; a column that is int32 in one file and int64 in another becomes the wider."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the files' columns have different types ({_words(error)})") from None


@lru_cache(maxsize=16)
def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True)


@dataclass(frozen=True)
class TableBatch:
    """Up to `batch_size` rows as Arrow, with the number of rows that all ranks bring this step."""

    table: pa.Table
    padded_rows: int
    origin: str


def steps_per_epoch(groups: Sequence[RowGroup], batch_size: int, world_size: int) -> int:
    """The same on every rank: the rank with the most rows decides."""
    most = -(-sum(group.rows for group in groups) // world_size)
    return -(-most // batch_size)


def read_batches(
    groups: Sequence[RowGroup],
    columns: Sequence[str] | None,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    shuffle: Shuffle = "none",
    shuffle_buffer: int = 1,
    seed: int = 0,
    epoch: int = 0,
    start_step: int = 0,
) -> Iterator[TableBatch]:
    """Yields the rank's batches of one epoch from `start_step` on: exactly `steps_per_epoch - start_step` of them.

    A rank that runs out of rows early (by at most one row, or because there are fewer rows than ranks) yields tables
    shorter than `padded_rows`, down to zero rows.
    """
    most = -(-sum(group.rows for group in groups) // world_size)
    windows = windows_of_rank(groups, rank, world_size, shuffle, shuffle_buffer, seed, epoch)
    skip = start_step * batch_size
    rest: pa.Table | None = None
    origin: list[str] = []
    taken = iter(enumerate(windows))
    for step in range(start_step, -(-most // batch_size)):
        wanted = min(batch_size, most - step * batch_size)
        while rest is None or rest.num_rows < wanted:
            index, window = next(taken, (-1, []))
            if not window:
                break
            rows = sum(map(len, window))
            if skip >= rows:
                skip -= rows
                continue
            rng = np.random.default_rng([seed, epoch, rank, index]) if shuffle == "rows" else None
            table = read_window(window, columns, rng).slice(skip)
            skip = 0
            if rest is None or not rest.num_rows:
                rest, origin = table, []
            else:
                rest = _stacked([rest, table])
            origin = list(dict.fromkeys([*origin, *(str(piece.group.path) for piece in window)]))
        if rest is None:
            rest = _no_rows(groups[0], columns)
        yield TableBatch(rest.slice(0, wanted), wanted, ", ".join(origin))
        rest = rest.slice(wanted)


def _no_rows(group: RowGroup, columns: Sequence[str] | None) -> pa.Table:
    return read_window([Slice(group, 0, 0)], columns, None)
