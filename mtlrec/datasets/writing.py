"""Writing a prepared data set: `out/{train,valid,test}/part-N.parquet`, `out/schema.json`, `out/vocabularies.json`.

Every data set of the project, public or synthetic, is laid out by this file, so that one reader, one yardstick
(`benchmarks/logistic_regression.py`) and one test of the layout serve them all. The keys every schema.json has:

    dataset  name                       rows    {"total": n, "train": n, "valid": n, "test": n}
    keys     columns that are no input  dense   {column: {"mean", "std", "min", "max"}}      of the train split
    sparse   {column: {"rows": n}}      lists   {column: {"rows": n, "max_length": n, "table": column sharing the ids}}
    labels   {task: {"kind", ...}}      undecidable   tasks with fewer than 200 positives in the test split

`rows` of a sparse column is the size of its embedding table: every id is in [0, rows).
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtlrec.config.tasks import MIN_TEST_POSITIVES
from mtlrec.errors import ConfigError

SPLITS = ("train", "valid", "test")
# Small enough that a small data set still has several row groups to hand out to ranks and column_uses.
ROW_GROUP_ROWS = 8192

Schema = dict[str, Any]


def prepare_folder(out: Path) -> None:
    """Make the split folders, removing the parts of an earlier data set of ours.

    Parts left from a run with more files would be read together with the new ones. Only a folder that carries our
    schema.json is cleared, and of it only our own file names.

    Raises:
        ConfigError: `out` is a file, or holds Parquet files without a schema.json beside them.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; name a folder to write the data set to")
    schema_path = out / "schema.json"
    existing = [path for split in SPLITS for path in sorted((out / split).glob("*.parquet"))]
    if existing and not schema_path.exists():
        raise ConfigError(
            f"out: {out} holds {existing[0].relative_to(out)} but no schema.json, so it is not (or not completely) "
            "ours; choose an empty folder or delete it"
        )
    for path in existing:
        if re.fullmatch(r"part-\d+\.parquet", path.name):
            path.unlink()
    schema_path.unlink(missing_ok=True)  # written last: its presence says that the data set is complete
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)


def write_split(out: Path, split: str, table: pa.Table) -> None:
    """Write one split as a single file `out/<split>/part-0.parquet`."""
    pq.write_table(table, out / split / "part-0.parquet", row_group_size=ROW_GROUP_ROWS, compression="zstd")


class PartWriter:
    """Rows of one split to part-0.parquet, part-1.parquet, ..., `rows_per_file` in each."""

    def __init__(self, folder: Path, rows_per_file: int, row_group_rows: int) -> None:
        self.folder, self.rows_per_file, self.row_group_rows = folder, rows_per_file, row_group_rows
        self.parts = self.rows = 0
        self.writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`, opening and closing files as they fill."""
        while table.num_rows:
            if self.writer is None:
                path = self.folder / f"part-{self.parts}.parquet"
                self.writer, self.rows = pq.ParquetWriter(path, table.schema, compression="zstd"), 0
            head = table.slice(0, self.rows_per_file - self.rows)
            self.writer.write_table(head, row_group_size=self.row_group_rows)
            self.rows += head.num_rows
            table = table.slice(head.num_rows)
            if self.rows == self.rows_per_file:
                self.close()

    def close(self) -> None:
        """Finish the file that is open, if one is."""
        if self.writer is not None:
            self.writer.close()
            self.writer, self.parts = None, self.parts + 1


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as readable UTF-8 JSON. NaN and infinity are refused, since JSON has neither."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def vocabulary(train_column: pa.ChunkedArray, min_rows: int = 1) -> pa.Array:
    """The distinct non-null values of a train column, sorted: value i gets id i + 1, id 0 is for all others.

    A value with fewer than `min_rows` train rows gets no id of its own: where many values are new after the train
    split, the embedding of id 0 is then trained on values as rare as they are.
    """
    counted = train_column.drop_null().value_counts()
    values = counted.field("values").filter(pc.greater_equal(counted.field("counts"), min_rows))
    return values.take(pc.array_sort_indices(values))


def encode(column: pa.ChunkedArray, values: pa.Array) -> pa.ChunkedArray:
    """Ids (int64) of `column` under `values` from `vocabulary`; null and other values become 0."""
    index = pc.index_in(column, value_set=values)
    return pc.fill_null(pc.add(index.cast(pa.int64()), 1), 0)


def dense_statistics(train: pa.Table, columns: list[str]) -> dict[str, dict[str, float]]:
    """Mean, population standard deviation, minimum and maximum of each dense column, in float64, over train rows."""
    statistics = {}
    for name in columns:
        values = train[name].to_numpy().astype(np.float64)
        found = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        statistics[name] = {key: float(value) for key, value in found.items()}
    return statistics


def binary_label(splits: dict[str, pa.Table], name: str) -> dict[str, Any]:
    """The schema's entry of a 0/1 label: how many positives each split has."""
    positives = {split: int(pc.sum(table[name]).as_py() or 0) for split, table in splits.items()}
    return {"kind": "binary", "positives": positives}


def undecidable(labels: dict[str, dict[str, Any]]) -> list[str]:
    """Binary tasks with fewer than `MIN_TEST_POSITIVES` positives in the test split: to be reported, not compared."""
    binary = {name: entry for name, entry in labels.items() if entry["kind"] == "binary"}
    return [name for name, entry in binary.items() if entry["positives"]["test"] < MIN_TEST_POSITIVES]


def row_counts(splits: dict[str, pa.Table]) -> dict[str, int]:
    """The schema's `rows`."""
    counts = {split: table.num_rows for split, table in splits.items()}
    return {"total": sum(counts.values()), **counts}
