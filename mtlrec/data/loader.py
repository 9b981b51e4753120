"""Batches made ahead on a thread, so that a rank does not wait for data.

pyarrow and NumPy release the GIL while they read and copy. An error on the thread is raised where the batch is taken;
leaving the loop early stops the thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from mtlrec.batch import Batch
from mtlrec.config import DataConfig
from mtlrec.data.collate import Collator
from mtlrec.data.parquet import Shuffle, list_row_groups, read_batches, steps_per_epoch


class Loader:
    """The batches of one split for one rank.

    Every rank yields the same number of equally large batches per epoch; what a rank lacks is padding of weight 0.
    `wait_s` adds up the seconds the consumer stood waiting.
    """

    def __init__(
        self,
        data: DataConfig,
        patterns: list[str],
        collate: Collator,
        rank: int = 0,
        world_size: int = 1,
        shuffle: Shuffle = "none",
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.collate = collate
        self.groups = list_row_groups(data.root, patterns, collate.columns, collate.readers)
        self.rows = sum(group.rows for group in self.groups)
        self.steps_per_epoch = steps_per_epoch(self.groups, data.batch_size, world_size)
        self.wait_s = 0.0
        self._data, self._rank, self._world_size = data, rank, world_size
        self._shuffle, self._seed, self._pin_memory = shuffle, seed, pin_memory

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch, from `start_step` on."""
        made: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=self._data.prefetch)
        stop = threading.Event()
        thread = threading.Thread(target=self._make, args=(epoch, start_step, made, stop), daemon=True)
        thread.start()
        try:
            while True:
                started = time.perf_counter()
                item = made.get()
                self.wait_s += time.perf_counter() - started
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _make(
        self,
        epoch: int,
        start_step: int,
        made: queue.Queue[Batch | BaseException | None],
        stop: threading.Event,
    ) -> None:
        try:
            for batch in self._batches(epoch, start_step):
                if not _put(made, batch, stop):
                    return
            _put(made, None, stop)
        except BaseException as error:  # handed to the consumer's thread, which raises it
            _put(made, error, stop)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        for rows in read_batches(
            self.groups,
            self.collate.columns,
            self._data.batch_size,
            self._rank,
            self._world_size,
            self._shuffle,
            self._data.shuffle_buffer,
            self._seed,
            epoch,
            start_step,
        ):
            batch = self.collate(rows)
            yield batch.pin_memory() if self._pin_memory else batch


def _put(
    made: queue.Queue[Batch | BaseException | None], item: Batch | BaseException | None, stop: threading.Event
) -> bool:
    """Waits for room, but not once the consumer has gone."""
    while not stop.is_set():
        try:
            made.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
