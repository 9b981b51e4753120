"""One pass over the train split for what a job leaves open: means and deviations, boundaries, vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileType

from mtlrec.config import DenseFeature, JobConfig, SparseFeature
from mtlrec.config.statistics import DenseStatistics, Moments, SparseStatistics, Statistics
from mtlrec.data.features.columns import Columns, floats, through
from mtlrec.data.features.ids import flat_values
from mtlrec.data.features.row_errors import FileRowErrors, RowErrors, Skipped
from mtlrec.data.features.vocabulary import place_of
from mtlrec.data.order import EpochOrder, Phase
from mtlrec.data.sources.dataset import list_row_groups
from mtlrec.data.sources.parquet import RowGroupReader, WindowTable
from mtlrec.errors import DataError

SAMPLE = 1_000_000
"""Values of which boundaries are taken; exact up to so many rows."""


@dataclass
class Sample:
    """A uniform sample of a stream (the values with the smallest random keys)."""

    rng: np.random.Generator
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    keys: np.ndarray = field(default_factory=lambda: np.empty(0))

    def add(self, values: np.ndarray) -> None:
        self.values = np.concatenate([self.values, values])
        self.keys = np.concatenate([self.keys, self.rng.random(len(values))])
        if len(self.values) > SAMPLE:
            kept = np.argpartition(self.keys, SAMPLE)[:SAMPLE]
            self.values, self.keys = self.values[kept], self.keys[kept]


@dataclass
class Found:
    """What the pass has found: `vocabularies` by file, of all features that share it, the most frequent value first."""

    statistics: Statistics
    vocabularies: dict[str, list[str]]
    rows: int


def find(
    job: JobConfig,
    min_count: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Found:
    """Reads the train split once, of its columns only those that are needed, as a training would: what `data.on_error`
    leaves out is not counted, nor what `max_length` cuts off.

    Args:
        min_count: values of a vocabulary that are seen less often are left to row 0
        progress: is told the rows read and the rows there are

    Raises DataError for a column that has nothing to learn from, for what any reading of it would refuse, and where
    nothing is open.
    """
    data = job.data
    standardized = [one for one in job.features.dense if "standardize" in one.steps and one.mean is None]
    bucketised = [one for one in job.features.sparse if one.transform == "bucketize" and one.boundaries is None]
    worded = [one for one in job.features.sparse if one.vocabulary is not None and _is_to_be_made(data.root, one)]
    column_uses = Columns(job.features, job.tables, {}, {}).column_uses
    columns = [one.source for one in standardized] + [one.source for one in (*bucketised, *worded)]
    wanted = {column: column_uses[column] for column in columns}
    if not wanted:
        raise DataError(
            "nothing to find: no feature has transform standardize, bucketize or vocabulary without its mean and std, "
            "boundaries or file"
        )
    dataset = list_row_groups(data.root, data.train, wanted, data.on_error, data.retries)
    skipped = Skipped(dataset, data.max_skipped)
    moments = {one.name: Moments() for one in standardized}
    samples = {one.name: Sample(np.random.default_rng([seed, index])) for index, one in enumerate(bucketised)}
    counts: dict[str, pa.Table] = {}

    def read(rows: WindowTable) -> tuple[list[np.ndarray], list[tuple[pa.Array, np.ndarray]], RowErrors]:
        row_errors = FileRowErrors(rows, ends=data.on_error != "skip_row")
        numbers = [_before_standardize(rows, dense, row_errors) for dense in standardized]
        flat = [flat_values(rows.table[sparse.source], sparse, row_errors) for sparse in (*bucketised, *worded)]
        return numbers, flat, row_errors

    windows = EpochOrder([group.rows for group in dataset.row_groups], 0, [Phase(1, 1)]).windows(0)
    check = read if data.on_error == "skip_file" else None
    reader = RowGroupReader(dataset, list(wanted), data.on_error, data.retries, check)
    done = 0
    for _, rows in reader.windows(windows, data.read_ahead):
        numbers, flat, row_errors = read(rows)
        left_out = np.zeros(rows.table.num_rows, bool) if row_errors.bad_mask is None else row_errors.bad_mask
        for dense, values in zip(standardized, numbers, strict=True):
            moments[dense.name].add(values[~left_out & ~np.isnan(values)])
        for sparse, (words, owners) in zip((*bucketised, *worded), flat, strict=True):
            kept = words.filter(pa.array(~left_out[owners]))
            if sparse.transform == "bucketize":
                values = floats(pa.chunked_array([kept]))
                samples[sparse.name].add(values[np.isfinite(values)])
            else:
                counts[str(sparse.vocabulary)] = _counted(counts.get(str(sparse.vocabulary)), kept)
        if row_errors.messages:
            skipped.add(int(left_out.sum()), row_errors.messages)
        done += rows.table.num_rows
        progress(done, dataset.rows)
    statistics = Statistics(
        dense={name: _dense(name, one) for name, one in moments.items()},
        sparse={one.name: _boundaries(one, samples[one.name].values, job.tables[one.table].rows) for one in bucketised},
    )
    sizes = {file: min(job.tables[one.table].rows for one in worded if one.vocabulary == file) for file in counts}
    vocabularies = {file: _most_frequent(counts[file], rows, min_count) for file, rows in sizes.items()}
    return Found(statistics, vocabularies, done)


def _is_to_be_made(root: str, feature: SparseFeature) -> bool:
    """Whether the vocabulary is not there yet. Raises DataError where it could not be written."""
    store, key = place_of(root, str(feature.vocabulary))
    if store.system.get_file_info(key).type != FileType.NotFound:
        return False
    if not store.is_local:
        raise DataError(
            f"features.sparse.{feature.name}.vocabulary: {store.name(key)} is not there, and vocabularies are written "
            "to a local disk only; name a path that begins with /"
        )
    return True


def write(found: Found, job: JobConfig, out: Path) -> list[str]:
    """Writes the statistics to `out` and the vocabularies to their files; returns the names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(found.statistics.model_dump_json(indent=1) + "\n", encoding="utf-8")
    written = [str(out)]
    for file, words in found.vocabularies.items():
        path = Path(place_of(job.data.root, file)[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        written.append(str(path))
    return written


def _before_standardize(rows: WindowTable, feature: DenseFeature, row_errors: RowErrors) -> np.ndarray:
    """[N] float64, null as NaN."""
    given = floats(rows.table[feature.source])
    values = through(given, feature, feature.steps[: feature.steps.index("standardize")], row_errors)
    row_errors.add(np.isinf(values), feature.source, lambda row: f"holds {given[row]:g}; a dense feature is finite")
    return values


def _dense(name: str, moments: Moments) -> DenseStatistics:
    if not moments.low < moments.high:
        raise DataError(f"features.dense.{name}: has {'one value' if moments.count else 'nulls'} only; remove it")
    if not np.isfinite(moments.std):
        raise DataError(
            f"features.dense.{name}: values up to {moments.high:g} have no finite deviation; clip them first"
        )
    return DenseStatistics(mean=moments.mean, std=moments.std)


def _boundaries(feature: SparseFeature, values: np.ndarray, rows: int) -> SparseStatistics:
    """Of as many equally large buckets as the table has rows; values that are frequent make fewer of them."""
    if not len(values):
        raise DataError(f"features.sparse.{feature.name}: has nulls only; remove it")
    cuts = np.quantile(values, np.arange(1, rows) / rows)
    return SparseStatistics(boundaries=np.unique(cuts).tolist())


def _counted(before: pa.Table | None, values: pa.Array) -> pa.Table:
    words = pc.cast(values, pa.string())
    here = pa.table({"word": words, "count": pa.repeat(pa.scalar(1, pa.int64()), len(words))})
    both = here if before is None else pa.concat_tables([before, here])
    return both.group_by("word").aggregate([("count", "sum")]).rename_columns(["word", "count"])


def _most_frequent(counts: pa.Table, rows: int, min_count: int) -> list[str]:
    ordered = counts.sort_by([("count", "descending"), ("word", "ascending")])
    kept = ordered.filter(pc.greater_equal(ordered["count"], min_count))["word"].to_pylist()[: rows - 1]
    if not kept:
        raise DataError("no value of a vocabulary is seen often enough; lower --min-count, or the column is empty")
    broken = next((word for word in kept if "\n" in word or "\r" in word), None)
    if broken is not None:
        raise DataError(f"value {broken!r} has a line break, which a vocabulary cannot hold; take transform hash")
    return kept
