"""Preparing files larger than memory: read in blocks, written as rows come, counted on the way.

What `writing.py` does with whole splits is done here block by block: no more than a few blocks of a source and one row
group per split are in memory, whatever the size of the files. The layout written is that of `writing.py`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mtlrec.config.statistics import Moments
from mtlrec.datasets import writing
from mtlrec.errors import DataError
from mtlrec.io import one_line

Progress = Callable[[str, int], None]
"""Takes what is being read or written, and the rows of it so far."""
# Arrow reads up to 32 blocks ahead.
BLOCK_BYTES = 4 << 20
ROW_GROUP_ROWS = 131_072
ROW_GROUPS_PER_FILE = 16
GIVE_IT_AS_IT_IS = "give the publisher's file as it is"


def unseen(what: str, rows: int) -> None:
    """Progress that nobody looks at."""


def find(folder: Path, name: str, remedy: str) -> Path:
    """`name` or `name`.gz in `folder`, the plain file before the compressed one."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"source: no {name} or {name}.gz at {folder}; {remedy}")


def count_rows(path: Path) -> int:
    """Lines of a text file, plain or .gz, a last one without a newline included."""
    rows, last = 0, b"\n"
    try:
        with pa.input_stream(path) as stream:
            while block := stream.read(BLOCK_BYTES):
                rows, last = rows + block.count(b"\n"), block[-1:]
    except OSError as error:
        raise _unreadable(path, error) from error
    return rows + (last != b"\n")


def parts_of(first: int, batch: pa.RecordBatch, ends: Mapping[str, int]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The pieces of `batch`, whose first row is row `first` of the file; `ends` is split -> its first row too many."""
    begin = 0
    for split, end in ends.items():
        start, stop = max(begin - first, 0), min(end - first, batch.num_rows)
        if start < stop:
            yield split, batch.slice(start, stop - start)
        begin = end


@dataclass(frozen=True)
class Csv:
    """A delimited text file of the publisher's, plain or .gz, whose columns have these names and types.

    With `header` its first line names them, in any order; without, they are its columns in this order. Empty fields
    are null. A line must fit into `block_bytes`.
    """

    path: Path
    columns: Mapping[str, pa.DataType]
    delimiter: str = ","
    header: bool = False
    block_bytes: int = BLOCK_BYTES
    progress: Progress = unseen

    def blocks(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(index of its first row, rows) of each block in file order.

        Raises:
            DataError: not these columns or types, or cannot be read; names file, row and column where known.
        """
        names = self._header() if self.header else list(self.columns)
        try:
            yield from self._read(names, use_threads=True)
        except pa.ArrowInvalid as error:
            raise self._located(names, error) from error
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def error(self, row: int, column: str, what: str) -> DataError:
        return DataError(f"{self.path.name}: row {row + 1 + self.header}, {column}: {what}")

    def check_flags(self, first: int, batch: pa.RecordBatch, columns: Sequence[str]) -> None:
        """Raises DataError where one of `columns` holds anything but 0 and 1."""
        for name in columns:
            values = batch[name]
            known = np.asarray(pc.fill_null(pc.is_in(values, pa.array([0, 1], values.type)), False))
            if not known.all():
                row = int(np.argmin(known))
                found = values[row].as_py() if values[row].is_valid else "an empty field"
                raise self.error(first + row, name, f"{found} is neither 0 nor 1; drop the row")

    def _header(self) -> list[str]:
        try:
            with pa.input_stream(self.path) as stream:
                first = bytes(stream.read(self.block_bytes)).partition(b"\n")[0]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        names = first.decode("utf-8", "replace").rstrip("\r").split(self.delimiter)
        absent = [name for name in self.columns if name not in names]
        if absent:
            raise DataError(f"{self.path.name}: no column {absent[0]!r} in its first line; {GIVE_IT_AS_IT_IS}")
        return names

    def _read(self, names: list[str], use_threads: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        reader = pa_csv.open_csv(
            self.path,
            read_options=pa_csv.ReadOptions(
                column_names=names, skip_rows=int(self.header), block_size=self.block_bytes, use_threads=use_threads
            ),
            parse_options=pa_csv.ParseOptions(delimiter=self.delimiter, quote_char=False, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(
                column_types=self.columns,
                include_columns=list(self.columns),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        first = 0
        for batch in reader:
            if batch.num_rows:
                yield first, batch
                first += batch.num_rows
                self.progress(self.path.name, first)

    def _located(self, names: list[str], error: Exception) -> DataError:
        """Arrow counts rows only when it reads with one thread: the file is read again, up to the mistake."""
        try:
            for _ in self._read(names, use_threads=False):
                pass
        except pa.ArrowInvalid as again:
            error = again
        message = one_line(error)
        if "straddl" in message:
            return DataError(f"{self.path.name}: a line is longer than {self.block_bytes} bytes; {GIVE_IT_AS_IT_IS}")
        place = re.search(r"(?:column #(\d+): )?Row #(\d+): (.*)", message)
        if place is None:
            return DataError(f"{self.path.name}: {message}; {GIVE_IT_AS_IT_IS}")
        column, row, what = place.groups()
        where = f", {names[int(column)]}" if column else ""
        return DataError(f"{self.path.name}: row {row}{where}: {what}; {GIVE_IT_AS_IT_IS}")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path.name}: {one_line(error)}; copy or download it again")


class SplitWriter:
    """Rows of train, valid and test to Parquet as they come, and what schema.json says of them.

    A context: what was written is removed when its block ends with an exception.

    Args:
        out: the data set's folder.
        labels: 0/1 columns, whose positives are counted.
        edges: (parent, child) of `labels`: rows with the child and without the parent are counted.
        dense: columns whose moments over the non-null train rows are kept.
        row_group_rows: rows of a Parquet row group; only the last of a split is smaller.
    """

    def __init__(
        self,
        out: Path,
        labels: Sequence[str],
        edges: Sequence[tuple[str, str]] = (),
        dense: Sequence[str] = (),
        row_group_rows: int = ROW_GROUP_ROWS,
        progress: Progress = unseen,
    ) -> None:
        if row_group_rows < 1:
            raise DataError(f"row_group_rows: {row_group_rows} is not positive; {ROW_GROUP_ROWS} is usual")
        writing.prepare_folder(out)
        self.out, self.row_group_rows, self.progress = out, row_group_rows, progress
        self.rows = dict.fromkeys(writing.SPLITS, 0)
        self._positives = {label: dict.fromkeys(writing.SPLITS, 0) for label in labels}
        self._changed = {edge: dict.fromkeys(writing.SPLITS, 0) for edge in edges}
        self._moments = {name: Moments() for name in dense}
        self._nulls = dict.fromkeys(dense, 0)
        self._waiting: dict[str, list[pa.Table]] = {split: [] for split in writing.SPLITS}
        rows_per_file = row_group_rows * ROW_GROUPS_PER_FILE
        self._writers = {s: writing.PartWriter(out / s, rows_per_file, row_group_rows) for s in writing.SPLITS}

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for split, writer in self._writers.items():
                if kind is None:
                    self._flush(split, all_rows=True)
                writer.close()
        except BaseException:  # a full disk, say
            self._remove()
            raise
        if kind is not None:
            self._remove()

    def write(self, split: str, batch: pa.RecordBatch) -> None:
        """Append rows to a split; they wait in memory until they fill a row group."""
        self._waiting[split].append(pa.Table.from_batches([batch]))
        self._count(split, batch)
        self._flush(split)

    def schema(self) -> dict[str, Any]:
        """The keys `rows`, `dense`, `labels`, `undecidable` and, where there are edges, `edges` of schema.json."""
        labels = {label: {"kind": "binary", "positives": found} for label, found in self._positives.items()}
        schema = {
            "rows": {"total": sum(self.rows.values()), **self.rows},
            "dense": {name: _statistics(moments, self._nulls[name]) for name, moments in self._moments.items()},
            "labels": labels,
            "undecidable": writing.undecidable(labels),
        }
        if self._changed:
            edges = self._changed.items()
            schema["edges"] = [{"parent": parent, "child": child, "changed": n} for (parent, child), n in edges]
        return schema

    def _flush(self, split: str, all_rows: bool = False) -> None:
        """Write the full row groups that wait, or all rows that do."""
        rows = sum(table.num_rows for table in self._waiting[split])
        ready = rows if all_rows else rows - rows % self.row_group_rows
        if ready:
            table = pa.concat_tables(self._waiting[split])
            self._writers[split].write(table.slice(0, ready))
            self.progress(f"{split}/", self.rows[split])
            self._waiting[split] = [table.slice(ready)]

    def _count(self, split: str, batch: pa.RecordBatch) -> None:
        self.rows[split] += batch.num_rows
        for label, positives in self._positives.items():
            positives[split] += int(pc.sum(batch[label]).as_py() or 0)
        for (parent, child), changed in self._changed.items():
            changed[split] += int(pc.sum(pc.greater(batch[child], batch[parent])).as_py() or 0)
        if split == "train":
            for name, moments in self._moments.items():
                moments.add(batch[name].drop_null().to_numpy().astype(np.float64))
                self._nulls[name] += batch[name].null_count

    def _remove(self) -> None:
        for split, writer in self._writers.items():
            for part in range(writer.parts + 1):  # the last perhaps half written
                (writer.folder / f"part-{part}.parquet").unlink(missing_ok=True)
            if not any(writer.folder.iterdir()):
                (self.out / split).rmdir()
        if not any(self.out.iterdir()):
            self.out.rmdir()


def _statistics(moments: Moments, nulls: int) -> dict[str, float | int | None]:
    """As `writing.dense_statistics`, and the number of nulls. None where there is no value at all."""
    if not moments.count:
        return {"mean": None, "std": None, "min": None, "max": None, "nulls": nulls}
    return {"mean": moments.mean, "std": moments.std, "min": moments.low, "max": moments.high, "nulls": nulls}
