"""Ids of columns too large for memory: counted, numbered by value, and lists of them kept on disk."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WAITING_IDS = 65_536
NO_ID = -1


class Counts:
    """How often each id was seen. Blocks wait until they are as many as the known ids, then merge at once."""

    def __init__(self) -> None:
        self.ids = self.counts = np.empty(0, np.int64)
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, ids: np.ndarray, counts: np.ndarray) -> None:
        self.waiting.append(_summed(ids, counts))
        if sum(len(waiting) for waiting, _ in self.waiting) > max(len(self.ids), WAITING_IDS):
            self._merge()

    def at_least(self, count: int) -> np.ndarray:
        """The ids seen `count` times or more, sorted; NO_ID is none."""
        self._merge()
        found: np.ndarray = self.ids[(self.counts >= count) & (self.ids != NO_ID)]
        return found

    def _merge(self) -> None:
        ids, counts = zip((self.ids, self.counts), *self.waiting, strict=True)
        self.ids, self.counts = _summed(np.concatenate(ids), np.concatenate(counts))
        self.waiting = []


class EncodedLists:
    """One list field of the common features under a vocabulary, on disk; of each line the start and length are kept."""

    def __init__(self, folder: Path, name: str, history: int) -> None:
        self.paths = [folder / f"{name}.ids", folder / f"{name}.weights"]
        self.history = history
        self.lengths: list[np.ndarray] = []

    def append(self, lists: pa.ListArray, weights: pa.ListArray, vocabulary: np.ndarray) -> None:
        """Known ids alone, in each line in the order of their weights, no more than `history` of the largest."""
        row = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
        ids, values = encode(lists.flatten().to_numpy(), vocabulary), weights.flatten().to_numpy()
        row, ids, values = row[ids > 0], ids[ids > 0], values[ids > 0]
        order = np.lexsort((values, row))
        row, ids, values = row[order], ids[order], values[order]
        ends = np.cumsum(np.bincount(row, minlength=len(lists)))
        kept = ends[row] - np.arange(len(row)) <= self.history
        self.lengths.append(np.bincount(row[kept], minlength=len(lists)))
        for path, column in zip(self.paths, (ids[kept], values[kept]), strict=True):
            with path.open("ab") as file:
                column.tofile(file)

    def of(self, lines: np.ndarray) -> tuple[pa.ListArray, pa.ListArray]:
        """The ids and weights of these lines."""
        starts, lengths, ids, weights = self._written
        first, length = starts[lines], lengths[lines]
        end = np.cumsum(length)
        positions = np.arange(length.sum()) + np.repeat(first - end + length, length)
        return list_array(length, ids[positions]), list_array(length, weights[positions])

    @cached_property
    def _written(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        lengths = np.concatenate(self.lengths)
        starts = np.cumsum(lengths) - lengths
        if not lengths.any():  # there is no map of an empty file
            return starts, lengths, np.empty(0, np.int64), np.empty(0, np.float32)
        ids, weights = (
            np.memmap(path, kind, "r") for path, kind in zip(self.paths, (np.int64, np.float32), strict=True)
        )
        return starts, lengths, ids, weights


def _summed(ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids, sorted, and the sum of the counts of each."""
    distinct, index = np.unique(ids, return_inverse=True)
    return distinct, np.bincount(index, counts, len(distinct)).astype(np.int64)


def encode(ids: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """1 + the position of each id in the sorted vocabulary, 0 where it is not there."""
    found = np.searchsorted(vocabulary, ids)
    known = np.append(vocabulary, NO_ID)[found] == ids
    return np.where(known & (ids != NO_ID), found + 1, 0)


def list_array(lengths: np.ndarray, values: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), values)


def write_vocabularies(path: Path, vocabularies: dict[str, np.ndarray]) -> None:
    """A row (field, value, id) for each id; value is the publisher's."""
    schema = pa.schema({"field": pa.string(), "value": pa.int64(), "id": pa.int64()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for name, values in vocabularies.items():
            field = pa.repeat(name, len(values))
            writer.write_table(pa.table([field, values, np.arange(1, len(values) + 1)], schema=schema))
