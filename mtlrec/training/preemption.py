"""A request to stop: SIGTERM from a scheduler, or Ctrl-C. All ranks save and end together."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from mtlrec.distributed.process_group import Ranks

KEY = "mtlrec/stop_at"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Takes SIGTERM and SIGINT for as long as it is entered; a second one, a second or more later, acts as ever.

    Earlier it is the same request: torchrun and a scheduler may both pass on what they got.

    The signal may reach one rank or all, between any two of their operations, but they must stop at the same point: the
    next step, or batch of an evaluation, waits for every rank in a collective. All count these points alike. So the
    first rank that was asked names the one after its current one, in the store that all share; the collectives of that
    one come after, and so nobody passes it unseen.

    Attributes:
        interrupted: whether it was Ctrl-C (SIGINT) that asked this rank
    """

    def __init__(self, ranks: Ranks) -> None:
        self._store = ranks.store
        self._asked, self._asked_at, self._points = False, 0.0, 0
        self._before: dict[int, Any] = {}
        self.interrupted = False

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & set it for SIGINT
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and time.monotonic() - self._asked_at > 1:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else self._before[number])
            os.kill(os.getpid(), number)
        elif not self._asked:
            self._asked, self._asked_at = True, time.monotonic()
            self.interrupted = number == signal.SIGINT

    def is_due(self) -> bool:
        """Whether all stop here. To be asked by every rank, after every step and every batch of an evaluation."""
        self._points += 1
        if not self._asked and not self._store.check([KEY]):
            return False
        return self._points >= int(self._store.compare_set(KEY, "", str(self._points + 1)))
