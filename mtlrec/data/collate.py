"""Rows of blocks become a batch, each tensor by one copy; what a rank lacks is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.batch import Batch
from mtlrec.config.data import Collection
from mtlrec.data.block import Block, Ids
from mtlrec.data.labels import TaskLabels
from mtlrec.data.memory import concatenated, ones
from mtlrec.data.sources.parquet import stacked

Cut = tuple[Block, int, int]
"""A block and which of its rows, [start, stop)."""


def cut(blocks: Iterator[Block], sizes: Iterable[int], nothing: Callable[[], Block]) -> Iterator[list[Cut]]:
    """For every size the cuts that make so many rows, fewer where the blocks end; `nothing()` has no rows."""
    block, start = next(blocks, None), 0
    for size in sizes:
        cuts: list[Cut] = []
        while size and block is not None:
            stop = min(start + size, len(block))
            cuts.append((block, start, stop))
            size, start = size - (stop - start), stop
            if start == len(block):
                block, start = next(blocks, None), 0
        yield cuts or [(nothing(), 0, 0)]


def collate(cuts: Sequence[Cut], rows: int, collections: Mapping[str, Collection]) -> Batch:
    """A batch of `rows` rows: those of the cuts, then padding of weight 0.

    Args:
        cuts: at least one, perhaps of no rows
        collections: of the blocks' sparse features
    """
    first = cuts[0][0]
    padding = rows - sum(stop - start for _, start, stop in cuts)

    def filled(of: Callable[[Block], Sequence[np.ndarray | None]]) -> torch.Tensor:
        """[rows, columns], column-major; 1 where a block has no such column, 0 for the padding."""
        columns = [of(block) for block, _, _ in cuts]
        if not padding and all(column is None for of_block in columns for column in of_block):
            return torch.from_numpy(ones(len(columns[0]) * rows, np.float32)).view(-1, rows).T
        parts = []
        for index in range(len(columns[0])):
            for (_, start, stop), of_block in zip(cuts, columns, strict=True):
                column = of_block[index]
                parts.append(np.ones(stop - start, np.float32) if column is None else column[start:stop])
            if padding:
                parts.append(np.zeros(padding, np.float32))
        return torch.from_numpy(concatenated(parts, len(columns[0]) * rows, np.float32)).view(-1, rows).T

    labels = [(block.task_labels, start, stop) for block, start, stop in cuts]
    tasks = len(labels[0][0].targets)

    def of_tasks(of: Callable[[TaskLabels], np.ndarray]) -> torch.Tensor:
        """[rows, T], column-major; a view of the block where the batch is cut from one."""
        parts = [of(of_block)[:, start:stop] for of_block, start, stop in labels]
        if padding:
            parts.append(np.zeros((tasks, padding), parts[0].dtype))
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).T

    in_space = of_tasks(lambda one: one.in_space)
    are_one = all(one.entire_space is one.in_space for one, _, _ in labels)
    faults = torch.zeros(2, tasks, dtype=torch.int64)
    for of_block, start, stop in labels:
        if of_block.has_faults:
            faults += torch.from_numpy(of_block.faults(start, stop))
    return Batch(
        dense=filled(lambda block: block.dense),
        sparse={name: _sparse(cuts, rows, padding, each) for name, each in collections.items()},
        targets=of_tasks(lambda one: one.targets),
        in_space=in_space,
        entire_space=in_space if are_one else of_tasks(lambda one: one.entire_space),
        sample_weights=of_tasks(lambda one: one.weights),
        row_mask=filled(lambda block: [block.row_mask])[:, 0],
        label_faults=faults,
        origin=", ".join(dict.fromkeys(file for block, _, _ in cuts for file in block.files)),
        group_ids=None if first.group_ids is None else _groups(cuts, padding),
    )


def _groups(cuts: Sequence[Cut], padding: int) -> torch.Tensor:
    known = [block.group_ids[start:stop] for block, start, stop in cuts if block.group_ids is not None]
    return torch.from_numpy(np.concatenate([*known, np.zeros(padding, np.int64)]))


def _sparse(cuts: Sequence[Cut], rows: int, padding: int, collection: Collection) -> KeyedJaggedTensor:
    """Features in turn, within each the cuts, then the padding, which has no ids."""
    places = [
        (block.ids[place], block.ids[place].span(start, stop), start, stop)
        for place in collection.places
        for block, start, stop in cuts
    ]
    size = sum(span.stop - span.start for _, span, _, _ in places)
    weights = None
    if collection.is_weighted:
        of_ids = [
            np.ones(span.stop - span.start, np.float32) if ids.weights is None else ids.weights[span]
            for ids, span, _, _ in places
        ]
        weights = torch.from_numpy(concatenated(of_ids, size, np.float32))
    return KeyedJaggedTensor(
        keys=list(collection.features),
        values=torch.from_numpy(concatenated([ids.values[span] for ids, span, _, _ in places], size, np.int64)),
        lengths=_lengths(places, len(cuts), len(collection.features) * rows, padding),
        weights=weights,
    )


def _lengths(places: Sequence[tuple[Ids, slice, int, int]], cuts: int, size: int, padding: int) -> torch.Tensor:
    if not padding and all(ids.lengths is None for ids, _, _, _ in places):
        return torch.from_numpy(ones(size, np.int32))
    parts = []
    for index, (ids, _, start, stop) in enumerate(places):
        parts.append(np.ones(stop - start, np.int32) if ids.lengths is None else ids.lengths[start:stop])
        if padding and index % cuts == cuts - 1:
            parts.append(np.zeros(padding, np.int32))
    return torch.from_numpy(concatenated(parts, size, np.int32))


def rows_of(cuts: Sequence[Cut]) -> pa.Table:
    """The cuts' rows as Arrow, of blocks that have them."""
    tables = [(block.table, start, stop) for block, start, stop in cuts if block.table is not None]
    return stacked([table.slice(start, stop - start) for table, start, stop in tables])
