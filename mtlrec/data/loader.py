"""The batches of one split for one rank: an order, read, converted, cut and collated.

Row groups are read on threads of their own, one thread makes blocks and batches of them; pyarrow and NumPy release the
GIL while they read and copy.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from mtlrec.batch import Batch
from mtlrec.config import DataConfig
from mtlrec.data.batches import Batches
from mtlrec.data.block import Block
from mtlrec.data.collate import Cut, collate, cut
from mtlrec.data.features.columns import Columns
from mtlrec.data.features.row_errors import Skipped
from mtlrec.data.order import EpochOrder, Phase, Position, Shuffle, Window
from mtlrec.data.sources.dataset import Dataset
from mtlrec.data.sources.parquet import RowGroupReader, WindowTable
from mtlrec.errors import DataError


class Loader:
    """The batches of one split for one rank.

    Every rank yields the same number of equally large batches per epoch; what a rank lacks is padding of weight 0.

    Args:
        dataset: `list_row_groups`' answer, the same on every rank
        columns: what is read
        expected_fingerprints: `id_fingerprints` in training; DataError is raised if ids would differ
        keep: columns that blocks have as Arrow too (`Block.table`), beside those that are read; None keeps all

    Attributes:
        inputs: what the ids hang on beside the job, by feature
        wait_s: seconds the consumer stood waiting
        skipped: what was left out so far, of this rank and epoch
    """

    def __init__(
        self,
        data: DataConfig,
        dataset: Dataset,
        columns: Columns,
        rank: int = 0,
        world_size: int = 1,
        shuffle: Shuffle = "none",
        seed: int = 0,
        pin_memory: bool = False,
        keep: Sequence[str] | None = (),
        expected_fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.dataset, self.columns = dataset, columns
        self.rows = dataset.rows
        self.id_fingerprints = columns.id_fingerprints(dataset)
        check_id_fingerprints(expected_fingerprints or {}, self.id_fingerprints)
        self.wait_s = 0.0
        self.skipped = Skipped(dataset, data.max_skipped, rank, world_size)
        self._data, self._rank, self._pin_memory = data, rank, pin_memory
        self._settings = Phase(
            world_size, data.batch_size, shuffle, data.shuffle_buffer if shuffle == "rows" else 1, seed
        )
        self._groups = [group.rows for group in dataset.row_groups]
        self._collections = columns.features.collections
        self._has_table = keep is None or bool(keep)
        read = None if keep is None else list(dict.fromkeys([*columns.column_uses, *keep]))
        check = columns.block if data.on_error == "skip_file" else None  # which raises, whatever window is read
        self._reader = RowGroupReader(dataset, read, data.on_error, data.retries, check)
        first = EpochOrder(self._groups, 0, [self._settings])
        self._known: tuple[object, EpochOrder] = (None, first)
        self.steps_per_epoch = first.steps

    @property
    def may_skip(self) -> bool:
        return self._data.on_error != "fail"

    # ---- positions

    def steps_left(self, position: Position) -> int:
        """Batches from `position` to the end of its epoch."""
        order, steps = self._order(position)
        return order.steps - steps

    def after(self, position: Position, steps: int = 1) -> Position:
        """Where a job stands that has taken `steps` more batches: an epoch that is over is the next one's beginning."""
        order, taken = self._order(position)
        if taken + steps >= order.steps:
            return Position(position.epoch + 1)
        over = tuple(phase for phase in self._phases(position)[:-1])
        return Position(position.epoch, (*over, replace(self._settings, steps=taken + steps)))

    def _order(self, position: Position) -> tuple[EpochOrder, int]:
        """The current phase's order, and the batches of it that are taken."""
        *over, current = self._phases(position)
        key = (position.epoch, *over)
        known, order = self._known  # taken together: the consumer's thread and the one that makes batches both ask
        if key != known:
            order = EpochOrder(self._groups, position.epoch, [*over, self._settings])
            self._known = key, order
        return order, current.steps

    def _phases(self, position: Position) -> list[Phase]:
        """The position's, and a new one where it was left with other settings than now."""
        over = list(position.phases)
        goes_on = bool(over) and replace(over[-1], steps=0) == self._settings
        return over if goes_on else [*(phase for phase in over if phase.steps), self._settings]

    # ---- batches

    def epoch(self, position: Position = Position()) -> Batches:  # noqa: B008
        """The batches from `position` to the end of its epoch; they are being made from now on."""
        return Batches(self._made(position), self._data.prefetch, self._wait)

    def _made(self, position: Position) -> Generator[Batch]:
        cuts = self.cuts(position)
        try:
            for of_batch, rows in cuts:
                yield self.batch(of_batch, rows)
        finally:
            cuts.close()

    def _wait(self, seconds: float) -> None:
        self.wait_s += seconds

    def cuts(self, position: Position = Position()) -> Generator[tuple[list[Cut], int]]:  # noqa: B008
        """What each batch is made of, and the rows that all ranks bring to it; on the caller's thread."""
        order, taken = self._order(position)
        size = order.phase.batch_size
        sizes = [min(size, order.most - step * size) for step in range(taken, order.steps)]
        blocks = self._blocks(order.windows(self._rank, taken))
        try:
            yield from zip(cut(blocks, sizes, self._nothing), sizes, strict=True)
        finally:
            blocks.close()

    def batch(self, cuts: list[Cut], rows: int) -> Batch:
        batch = collate(cuts, rows, self._collections)
        return batch.pin_memory() if self._pin_memory else batch

    def _blocks(self, windows: list[Window]) -> Generator[Block]:
        self.skipped.begin()
        read = self._reader.windows(windows, self._data.read_ahead)
        try:
            for window, rows in read:
                block = self._block(window, rows)
                del rows  # before the batches are cut: it is as large as the block
                if block.messages:
                    assert block.row_mask is not None
                    self.skipped.add(int((block.row_mask == 0).sum()), block.messages)
                yield block
        finally:
            read.close()

    def _block(self, window: Window, rows: WindowTable) -> Block:
        block = self.columns.block(rows, self._data.on_error)
        if self._has_table:
            block = replace(block, table=rows.table)
        return block if window.order is None else block.take(window.order)

    def _nothing(self) -> Block:
        table = self._reader.nothing()
        return replace(self.columns.block(WindowTable(table, (), (), ())), table=table)


def check_id_fingerprints(expected_fingerprints: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises DataError where a feature's values would become other ids than those the model was trained with."""
    for feature, fingerprint in now.items():
        before = expected_fingerprints.get(feature, fingerprint)
        if before != fingerprint:
            raise DataError(
                f"features.sparse.{feature}: its ids are {fingerprint} here and were {before} in training, so the "
                "model would take one value for another; give it what it was trained with"
            )
