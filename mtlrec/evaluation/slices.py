"""AUC within the values of a column: where a model is worse than its figure over all rows says.

N rows, S slices, T binary tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from mtlrec.config import JobConfig
from mtlrec.data.sources.arrow_types import plain
from mtlrec.data.sources.dataset import ColumnUse, list_row_groups
from mtlrec.errors import ConfigError
from mtlrec.metrics.grouped_auc import auc_of_groups, rows_of_all_ranks
from mtlrec.models.train_module import StepOutput

MOST_VALUES = 12
"""A column with more of them: numbers are cut into parts of as many rows, of others the rarest are put together."""
PARTS, LONGEST = 5, 40


@dataclass(frozen=True)
class Slices:
    """Of the values of one column, or of parts of its range.

    Attributes:
        column: its name
        names: [S]
        rows: [S], those in no task's space too
        tasks: [T], the binary ones
        auc: [T][S], over each task's own sample space, rows counting as one each; NaN where a slice has one label only
        positives: [T][S]
    """

    column: str
    names: list[str]
    rows: list[int]
    tasks: list[str]
    auc: list[list[float]]
    positives: list[list[int]]


class SliceRows:
    """Accumulates rows; `compute` cuts them up."""

    def __init__(self, column: str, job: JobConfig) -> None:
        self.column = column
        self._tasks = {task.name: index for index, task in enumerate(job.tasks) if task.is_binary}
        self._values: list[pa.ChunkedArray] = []
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(self, values: pa.ChunkedArray, step: StepOutput) -> None:
        """`values` of a batch's rows, without those that fill it up at its end; what was left out counts nowhere."""
        tasks, batch, outputs = list(self._tasks.values()), step.batch, step.outputs
        inside = batch.in_space & (batch.sample_weights > 0)
        logits = outputs.log_p - outputs.log_not_p
        targets = batch.targets.where(inside, 0.0)
        here = (batch.sample_weights[: len(values)] > 0).any(1).cpu()
        plain = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
        self._values.append(plain.filter(pa.array(here.numpy())))
        columns = (one[: len(values), tasks].cpu()[here] for one in (inside, logits, targets))
        self._parts.append(tuple(column.numpy() for column in columns))

    def compute(self) -> Slices:
        """Collective."""
        values = _of_all_ranks(_one_array(self._values))
        inside, logits, targets = rows_of_all_ranks(*(np.concatenate(part) for part in zip(*self._parts, strict=True)))
        codes, names = sliced(values)
        auc = np.full((len(self._tasks), len(names)), np.nan)
        positives = np.zeros_like(auc, dtype=np.int64)
        for task in range(len(self._tasks)):
            here = inside[:, task]
            groups = auc_of_groups(codes[here], logits[here, task], targets[here, task])
            auc[task, groups.ids] = groups.auc
            positives[task, groups.ids] = groups.positives
        rows = np.bincount(codes, minlength=len(names))
        return Slices(self.column, names, rows.tolist(), list(self._tasks), auc.tolist(), positives.tolist())


def _one_array(parts: Sequence[pa.ChunkedArray | pa.Array]) -> pa.Array:
    """Files may differ in the width of their numbers."""
    tables = [pa.table({"values": part}) for part in parts]
    return pa.concat_tables(tables, promote_options="permissive")["values"].combine_chunks()


def _of_all_ranks(mine: pa.Array) -> pa.Array:
    if not dist.is_initialized():
        return mine
    gathered: list[pa.Array] = [mine] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return _one_array(gathered)


def may_be_sliced(kind: pa.DataType) -> bool:
    kind = plain(kind)
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind):
        return False
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def check_column(job: JobConfig, split: str, column: str) -> None:
    """Raises DataError, naming file and column, where a split's files have no such column to slice by, and ValueError
    where no task is binary."""
    if not any(task.is_binary for task in job.tasks):
        raise ConfigError(f"--slice {column}: shows the AUC of binary tasks, and the job has none")
    patterns = getattr(job.data, split)
    list_row_groups(job.data.root, patterns, kept_for_slices(column), job.data.on_error, job.data.retries)


def kept_for_slices(column: str | None) -> dict[str, list[ColumnUse]]:
    """For a loader."""
    wants = "numbers, text, dates or booleans"
    return {column: [ColumnUse("--slice", may_be_sliced, wants)]} if column is not None else {}


def sliced(values: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Which slice each value is in [N], and the slices' names. Numbers and dates in their order, others the most
    frequent first; null, and what is not finite, is a slice of its own, the last."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    known, present = np.asarray(values.is_valid()), values.drop_null()
    codes = np.full(len(values), -1)
    encoded = present.dictionary_encode()
    numbers = _as_numbers(encoded.dictionary)
    if numbers is None or len(numbers) <= MOST_VALUES:
        codes[known], names = _by_value(encoded, numbers)
    else:
        codes[known], names = _by_range(encoded, numbers)
    if not known.all():
        codes[~known] = len(names)
        names = [*names, "null"]
    return codes, names


def _as_numbers(distinct: pa.Array) -> np.ndarray | None:
    """[distinct], in the order of the values; None for text and booleans."""
    kind = distinct.type
    if pa.types.is_temporal(kind):
        return np.asarray(distinct.cast(pa.int32() if kind.bit_width == 32 else pa.int64()))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(distinct)
    return np.asarray(distinct.cast(pa.float64())) if pa.types.is_decimal(kind) else None


def _by_value(encoded: pa.DictionaryArray, numbers: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    codes, words = np.asarray(encoded.indices), _in_words(encoded.dictionary)
    often = np.bincount(codes, minlength=len(words))
    order = np.argsort(-often if numbers is None else numbers, kind="stable")
    place = np.empty(len(words), np.int64)
    place[order] = np.arange(len(words))
    names = [words[index] for index in order]
    if len(names) <= MOST_VALUES:
        return place[codes], names
    rest = f"({len(names) - MOST_VALUES + 1:,} others)"
    return np.minimum(place[codes], MOST_VALUES - 1), [*names[: MOST_VALUES - 1], rest]


def _by_range(encoded: pa.DictionaryArray, numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Parts of about as many rows each. A number that more rows have than would be in a part is one by itself."""
    codes = np.asarray(encoded.indices)
    order = np.argsort(numbers)
    often = np.bincount(codes, minlength=len(numbers))[order]
    alone = often > len(codes) / PARTS
    rest = np.where(alone, 0, often)
    parts = max(1, PARTS - int(alone.sum()))
    nth = np.minimum((np.cumsum(rest) - rest / 2) / max(rest.sum(), 1) * parts, parts - 1).astype(np.int64)
    starts = np.concatenate([[True], alone[1:] | alone[:-1] | (nth[1:] != nth[:-1])])
    part = np.empty(len(numbers), np.int64)
    part[order] = np.cumsum(starts) - 1
    firsts = np.flatnonzero(starts)
    lasts = np.append(firsts[1:], len(numbers)) - 1
    ends = encoded.dictionary.take(pa.array(order[np.stack([firsts, lasts], 1).ravel()]))
    words = _in_words(ends)
    return part[codes], [" to ".join(dict.fromkeys(pair)) for pair in zip(words[::2], words[1::2], strict=True)]


def _in_words(values: pa.Array) -> list[str]:
    """Floats with as many digits as tell them apart."""
    if not pa.types.is_floating(values.type):
        words = [str(word) for word in values.cast(pa.string()).to_pylist()]
        return [word if len(word) <= LONGEST else f"{word[:LONGEST]}..." for word in words]
    floats = values.to_pylist()
    for digits in (4, 6, 9, 17):
        words = [f"{number:.{digits}g}" for number in floats]
        if len(set(words)) == len(set(floats)):
            break
    return words
