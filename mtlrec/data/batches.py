"""Batches made ahead on a thread, so that a rank does not wait for data."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import torch

from mtlrec.batch import Batch

Waited = Callable[[float], None]


class Batches(Iterator[Batch]):
    """Yields what `made` yields, which runs on a thread of its own from the moment this is built.

    An error of the thread is raised where the batch would be taken. Whoever leaves early calls `close`.

    Args:
        made: a generator of batches
        ahead: batches that wait to be taken, at most
        waited: is told the seconds that the consumer stood waiting for a batch
    """

    def __init__(self, made: Iterator[Batch], ahead: int, waited: Waited) -> None:
        self._waited = waited
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_run, args=(made, self._queue, self._stop), daemon=True, name="batches")
        _start_with_one_core(self._thread)

    def __next__(self) -> Batch:
        started = time.perf_counter()
        with torch.profiler.record_function("mtlrec::data_wait"):
            item = None if self._stop.is_set() else self._queue.get()
        self._waited(time.perf_counter() - started)
        if item is None:
            self.close()
            raise StopIteration
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Ends the thread; what it has read is dropped."""
        self._stop.set()
        self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


def _run(made: Iterator[Batch], into: queue.Queue[Batch | BaseException | None], stop: threading.Event) -> None:
    def put(item: Batch | BaseException | None) -> bool:
        """Waits for room, but not once the consumer has gone."""
        while not stop.is_set():
            try:
                into.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    try:
        for batch in made:
            if not put(batch):
                return
        put(None)
    except BaseException as error:  # handed to the consumer's thread, which raises it
        put(error)
    finally:
        made.close()  # type: ignore[attr-defined]


def _start_with_one_core(thread: threading.Thread) -> None:
    """Torch's operators in this thread run in it alone. Each would else call in threads that then wait for the next one
    with a core to themselves: 1.7 times as much processor time for a batch."""
    threads, run, is_set = torch.get_num_threads(), thread.run, threading.Event()

    def alone() -> None:
        torch.get_num_threads()  # or this thread would take the number of all once more, at its first operator
        torch.set_num_threads(1)  # of this thread, and of all that are started later
        is_set.set()
        run()

    thread.run = alone  # type: ignore[method-assign]
    thread.start()
    is_set.wait()
    torch.set_num_threads(threads)  # of the caller, where nothing changes, and of all that are started later
