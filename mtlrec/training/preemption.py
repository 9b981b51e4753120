"""SIGTERM: what a scheduler sends some seconds before it takes the machine. All ranks save and end together."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from mtlrec.distributed.process_group import Ranks

KEY = "mtlrec/stop_at"


class Preemption:
    """Takes SIGTERM for as long as it is entered; a second one, a second or more later, ends the process as ever.

    Earlier it is the same request: torchrun and a scheduler may both pass on what they got.

    The signal may reach one rank or all, between any two of their operations, but they must stop at the same point: the
    next step, or batch of an evaluation, waits for every rank in a collective. All count these points alike. So the
    first rank that was asked names the one after its current one, in the store that all share; the collectives of that
    one come after, and so nobody passes it unseen.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._store = ranks.store
        self._asked, self._asked_at, self._points = False, 0.0, 0
        self._before: signal.Handlers | object | None = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # no other may
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and time.monotonic() - self._asked_at > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._asked:
            self._asked, self._asked_at = True, time.monotonic()

    def is_due(self) -> bool:
        """Whether all stop here. To be asked by every rank, after every step and every batch of an evaluation."""
        self._points += 1
        if not self._asked and not self._store.check([KEY]):
            return False
        return self._points >= int(self._store.compare_set(KEY, "", str(self._points + 1)))
