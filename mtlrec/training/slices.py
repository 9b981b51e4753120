"""AUC within the values of a column: where a model is worse than its figure over all rows says.

N rows, S slices, T binary tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from mtlrec.config import JobConfig
from mtlrec.models.train_module import StepOutput
from mtlrec.training.grouped_auc import auc_of_groups, rows_of_all_ranks

MOST_VALUES = 12
"""A column with more of them: numbers are cut into parts of as many rows, of others the rarest are put together."""
PARTS = 5


@dataclass(frozen=True)
class Slices:
    """Of the values of one column, or of parts of its range.

    Attributes:
        column: its name
        names: [S]
        rows: [S]
        tasks: [T], the binary ones
        auc: [T][S], over each task's own sample space; NaN where a slice has one label only
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
        """`values` of a batch's rows, without those that fill it up at its end.

        Raises ValueError for a column of lists, or anything else that has no values to tell apart.
        """
        if pa.types.is_nested(values.type):
            raise ValueError(f"--slice {self.column}: holds {values.type}; slices are of numbers, text or booleans")
        tasks, populations, outputs = list(self._tasks.values()), step.report.populations, step.outputs
        inside = populations.space * (populations.weights > 0)
        logits = outputs.log_p - outputs.log_not_p
        targets = populations.targets.where(inside > 0, 0.0)
        self._values.append(values if not pa.types.is_dictionary(values.type) else values.cast(values.type.value_type))
        self._parts.append(tuple(one[: len(values), tasks].cpu().numpy() for one in (inside > 0, logits, targets)))

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


def sliced(values: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Which slice each value is in [N], and the slices' names. Numbers in their order, others the most frequent first;
    null is a slice of its own, the last."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    known, present = np.asarray(values.is_valid()), values.drop_null()
    codes = np.full(len(values), -1)
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if is_number and pc.count_distinct(present).as_py() > MOST_VALUES:
        codes[known], names = _parts(np.asarray(pc.cast(present, pa.float64(), safe=False)))
    else:
        codes[known], names = _values(present, is_number)
    if not known.all():
        codes[~known] = len(names)
        names = [*names, "null"]
    return codes, names


def _parts(numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, PARTS + 1)))
    codes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    last = len(edges) - 2
    return codes, [
        f"{low:g} to {high:g}" if index == last else f"{low:g} to below {high:g}"
        for index, (low, high) in enumerate(pairwise(edges))
    ]


def _values(present: pa.Array, is_number: bool) -> tuple[np.ndarray, list[str]]:
    encoded = present.dictionary_encode()
    codes, words = np.asarray(encoded.indices), [str(word) for word in encoded.dictionary.to_pylist()]
    order = np.argsort(-np.bincount(codes, minlength=len(words)), kind="stable")
    if is_number:
        order = np.array(sorted(order, key=lambda index: float(words[index])), dtype=np.int64)
    place = np.empty(len(words), np.int64)
    place[order] = np.arange(len(words))
    names = [words[index] for index in order]
    if len(names) <= MOST_VALUES:
        return place[codes], names
    return np.minimum(place[codes], MOST_VALUES - 1), [*names[: MOST_VALUES - 1], "others"]
