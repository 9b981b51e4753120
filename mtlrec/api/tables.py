"""Data as the verbs take it: Parquet paths, Arrow tables, data frames. Tables are written to Parquet once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mtlrec.api.jobs import SPLITS, load_job
from mtlrec.config import JobConfig
from mtlrec.display import Displayable
from mtlrec.errors import ConfigError, DataError
from mtlrec.io import one_line, replacing
from mtlrec.run_folder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

    from mtlrec.data.profiling.inspect import Report
    from mtlrec.data.profiling.propose import Proposal

Rows = Any
"""A path (a Parquet file, a folder or a glob of them), a `pyarrow.Table`, or a pandas or polars data frame."""
ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class InspectResult(Displayable):
    """What is in a table or in files, and a job to start from."""

    report: Report
    proposal: Proposal = field(repr=False)

    @property
    def yaml(self) -> str:
        """The proposed job, with comments on what was left out and why."""
        from mtlrec.data.profiling.propose import render

        return render(self.proposal)

    @property
    def job(self) -> JobConfig:
        """The proposed job. Raises ConfigError where no column looks like a label or a feature."""
        from mtlrec.config.file import parse_config

        return parse_config(self.yaml, "the proposed job")

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.data.profiling.tables import report_table

        yield report_table(self.report)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self.report) | asdict(self.proposal)


def to_arrow(rows: Rows) -> pa.Table:
    """A data frame, or whatever else exports an Arrow stream, as a table. A pandas index is left out.

    Raises DataError for what is no table or has columns of mixed types.
    """
    import pyarrow as pa

    if isinstance(rows, pa.Table):
        return rows
    if not hasattr(rows, "__arrow_c_stream__"):
        kind = type(rows).__name__
        raise DataError(f"{kind}: is no table. Give a path, a pyarrow.Table, or a pandas or polars data frame.")
    try:
        table = pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"the data frame cannot become an Arrow table: {one_line(error)}") from None
    return table.drop_columns([name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)])


def split(
    rows: Rows, valid: float = 0.1, test: float = 0.1, by: str | None = None, seed: int = 0
) -> dict[str, pa.Table]:
    """Divide a table into train, valid and test, as `train(..., data=...)` takes them.

    Args:
        valid, test: their shares of the rows
        by: a column to sort by, a time say; the last rows become test, those before them valid. Without it rows are
            dealt at random
        seed: of the random order
    """
    import numpy as np
    import pyarrow as pa

    if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
        raise ConfigError(f"valid={valid}, test={test}: give shares of the rows that leave some for train")
    table = to_arrow(rows)
    if by is None:
        table = table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))
    elif by in table.column_names:
        try:
            table = table.sort_by(by)
        except (pa.ArrowException, TypeError) as error:
            raise DataError(f"by={by}: the rows cannot be sorted by it: {one_line(error)}") from None
    else:
        raise DataError(f"by={by}: no such column; columns are {', '.join(table.column_names)}")
    num_valid, num_test = round(valid * len(table)), round(test * len(table))
    first = len(table) - num_valid - num_test
    return {"train": table[:first], "valid": table[first : first + num_valid], "test": table[first + num_valid :]}


def inspect(rows: Rows, name: str = "job") -> InspectResult:
    """What is in a table or in Parquet files (rows, types, nulls, distinct values), and a job to start from.

    The job is a guess by the columns' names and values: look at it before you train.

    Raises DataError where nothing is there that can be read.
    """
    from mtlrec.data.profiling.inspect import inspect as inspect_files
    from mtlrec.data.profiling.propose import propose

    with on_disk(rows) as path:
        report = inspect_files(path)
        proposal = propose(report, path, name)
    if not _is_path(rows):
        keys = {"keys": proposal.tree["data"]["keys"]} if "keys" in proposal.tree["data"] else {}
        files = {split: [f"{split}/*.parquet"] for split in SPLITS}
        proposal = replace(proposal, tree=proposal.tree | {"data": files | keys})
    return InspectResult(report, proposal)


@contextmanager
def on_disk(rows: Rows) -> Iterator[str]:
    """The path of the rows; a table's is a temporary file."""
    if _is_path(rows):
        yield os.fspath(rows)
        return
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("a table in memory is read by one process; with several name Parquet files")
    with TemporaryDirectory(prefix="mtlrec-") as folder:
        path = Path(folder) / "part-0.parquet"
        _write(rows, path)
        yield str(path)


def with_data(job: JobConfig, data: Mapping[str, Rows], run: RunFolder) -> JobConfig:
    """The job on this data: each split's path, or where `write_tables` puts its table. Other splits are empty."""
    unknown = sorted(data.keys() - set(SPLITS))
    if unknown or "train" not in data:
        raise ConfigError(f"data: has the splits {', '.join(data)}; give train, and valid and test if you have them")
    _check_root(job)
    patterns = {
        split: [_pattern(data[split]) if _is_path(data[split]) else escape(str(_place(run, split).absolute()))]
        if split in data
        else []
        for split in SPLITS
    }
    return load_job(job, {f"data.{split}": of for split, of in patterns.items()})


def on_rows(job: JobConfig, split: str, path: str) -> JobConfig:
    """The job with these rows as one of its splits."""
    _check_root(job)
    return load_job(job, {f"data.{split}": [_pattern(path)]})


def _check_root(job: JobConfig) -> None:
    if "://" in job.data.root and not job.data.root.startswith("file://"):
        raise ConfigError(
            "data: other data can be given to a job of local files only. Set data.root to a folder, and give "
            "vocabularies as absolute paths."
        )


def write_tables(data: Mapping[str, Rows], run: RunFolder, overwrite: bool = False) -> None:
    """Write the splits that are no paths as Parquet, each atomically.

    Args:
        overwrite: set the data aside that the folder has

    Raises ConfigError where the folder has other rows already and keeps them: what was trained on them would be
    continued on others.
    """
    import pyarrow.parquet as pq

    if overwrite and data:
        run.set_data_aside()
    for split, rows in data.items():
        if _is_path(rows):
            continue
        path, table = _place(run, split), to_arrow(rows)
        if path.exists() and not pq.read_table(path).equals(table):
            raise ConfigError(f"data: the rows of {split} are not those in {path}. Name another --output.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(table, path)


def _is_path(rows: Rows) -> bool:
    return isinstance(rows, str | os.PathLike)


def _place(run: RunFolder, split: str) -> Path:
    return run.data / split / "part-0.parquet"


def _pattern(path: str | os.PathLike[str]) -> str:
    """Absolute, so that data.root has no say in it."""
    text = os.fspath(path)
    if "://" in text:
        raise ConfigError(f"data: {text}: set data.root to a URI, and data.train to what lies below it")
    absolute = Path(text).absolute()
    return escape(str(absolute)) if absolute.exists() else str(absolute)


def _write(rows: Rows, path: Path) -> None:
    import pyarrow.parquet as pq

    with replacing(path) as part:
        pq.write_table(to_arrow(rows), part, row_group_size=ROW_GROUP_ROWS)
