"""Which rank keeps the others waiting: each tells the store, now and then, that it lives and where it stands.

A collective that one rank does not come to says only "timed out" on the others. Here they look up who has fallen
silent (stopped, its machine or network gone) and at which line of code the rest stand, and say so: a first time after
half of the time that a collective may take, and once more in the error that ends the run.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

from mtlrec.compat.gloo_errors import is_timeout
from mtlrec.errors import RankMissing

logger = logging.getLogger(__name__)

PACKAGE = str(Path(__file__).parents[1])
BEAT_S = 2.0
NO_STORE = "the store that the ranks share, rank 0's or torchrun's, does not answer"


class Liveness(AbstractContextManager["Liveness"]):
    """Entered for as long as the group lives; turns a collective's timeout into RankMissing.

    One thread alone talks to the store, because a store whose process is frozen answers nobody; another one sees that.

    Args:
        store: shared by all ranks
        timeout_s: of a collective; without `tick` for half as long the rank looks what the others do
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]  # a wait on a connection blocks it for all
        self._rank, self._world_size, self._timeout = rank, world_size, timeout_s
        self._every = min(BEAT_S, timeout_s / 8)
        self._record: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "beats": 0, "ended": False}
        self._main, self._stopped_at = threading.get_ident(), ""
        self._ticked = self._answered = time.monotonic()
        self._told = self._lost = False
        self._finding = ""
        works = (self._beat, self._watch) if world_size > 1 else ()
        self._threads = [threading.Thread(target=work, name="liveness", daemon=True) for work in works]
        self._closed, self._asked, self._found = threading.Event(), threading.Event(), threading.Event()

    def __enter__(self) -> Liveness:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self._world_size == 1 or error is None or not is_timeout(error):
            self._record["ended"] = error is not None
            self._close()
            return
        self._stopped_at = _at([frame for frame, _ in traceback.walk_tb(error.__traceback__)][::-1])
        self._asked.set()
        self._found.wait(10 * self._every)
        time.sleep(3 * self._every)  # others may still be looking: they want to hear of us, and the store if it is ours
        self._close()
        took = f"a collective took longer than train.timeout_s ({self._timeout:g} s)"
        raise RankMissing(f"{took}: {self._finding or NO_STORE}") from error

    def _close(self) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(self._every)

    def tick(self) -> None:
        """The rank has got on: a step of training is done, or a batch of an evaluation."""
        self._ticked, self._told = time.monotonic(), False

    # ---- the thread that talks to the store

    def _beat(self) -> None:
        self._write()
        while not self._closed.wait(self._every):
            self._write()
            waited = time.monotonic() - self._ticked
            if self._asked.is_set():
                self._finding = self._finding or _sentence(*self._look())
                self._found.set()
            elif waited > self._timeout / 2 and not self._told:
                self._told = True
                self._warn(waited)
        if self._record["ended"]:
            self._write()

    def _write(self) -> None:
        """A store whose process has ended is not asked again: torch logs a stack each time."""
        self._record["beats"] += 1
        try:
            if not self._lost:
                self._store.set(_key(self._rank), json.dumps(self._record | {"at": self._place()}))
        except RuntimeError:
            self._lost = True
        self._answered = time.monotonic()

    def _warn(self, waited: float) -> None:
        silent, standing = self._look()
        if self._rank == min((rank for ranks in standing.values() for rank in ranks), default=self._rank):
            logger.warning(f"no step for {waited:.0f} s: {_sentence(silent, standing)}")

    # ---- the thread that watches the other one

    def _watch(self) -> None:
        """Ends the process where the store has not answered for one and a half times as long as a collective may take:
        the main thread may wait for it too, which no timeout ends."""
        while not self._closed.wait(self._every):
            unanswered = time.monotonic() - self._answered
            if unanswered > self._timeout / 2 and not self._told:
                self._told = True
                logger.warning(f"no step for {time.monotonic() - self._ticked:.0f} s: {NO_STORE}")
            if min(unanswered, time.monotonic() - self._ticked) > 1.5 * self._timeout:
                logger.warning(f"mtlrec (rank {self._rank}): {NO_STORE} for {unanswered:.0f} s, ended")
                os._exit(1)

    # ---- looking

    def _look(self) -> tuple[list[str], dict[str, list[int]]]:
        """Who has fallen silent, in words, and the other ranks by where they stand. Clocks of machines differ, so
        somebody is silent who does not beat while we look."""
        before = self._read()
        for _ in range(3):  # the others look too: they must hear of us meanwhile
            time.sleep(self._every)
            self._write()
        after = self._read()
        silent: list[str] = ["the store that the ranks share has ended"] if self._lost else []
        standing: dict[str, list[int]] = {}
        for rank, (was, is_) in enumerate(zip(before, after, strict=False)):
            if rank == self._rank:
                standing.setdefault(self._place(), []).append(rank)
            elif is_ is None:
                silent.append(f"rank {rank} has never been heard of")
            elif is_["ended"]:
                silent.append(f"rank {rank} has ended")
            elif was is not None and was["beats"] == is_["beats"]:
                silent.append(f"rank {rank} (process {is_['pid']} on {is_['host']}) does not answer")
            else:
                standing.setdefault(is_["at"], []).append(rank)
        return silent, standing

    def _read(self) -> list[dict[str, Any] | None]:
        keys = [] if self._lost else [_key(rank) for rank in range(self._world_size)]
        try:
            return [json.loads(self._store.get(key)) if self._store.check([key]) else None for key in keys]
        except RuntimeError:
            self._lost = True
            return []

    def _place(self) -> str:
        """Where the main thread stands, or stood when the error came."""
        frame, stack = sys._current_frames().get(self._main), []
        while frame is not None:
            stack.append(frame)
            frame = frame.f_back
        return self._stopped_at or _at(stack)


def _key(rank: int) -> str:
    return f"mtlrec/alive/{rank}"


def _sentence(silent: list[str], standing: dict[str, list[int]]) -> str:
    places = [f"rank {', '.join(map(str, ranks))} at {place}" for place, ranks in standing.items()]
    return "; ".join([*silent, *sorted(places, key=len)])


def _at(stack: list[FrameType]) -> str:
    """The innermost line of all, in the innermost of ours; `stack` begins with the innermost."""
    ours = next((frame for frame in stack if frame.f_code.co_filename.startswith(PACKAGE)), None)
    shown = [_line(frame) for frame in dict.fromkeys([*stack[:1], ours]) if frame is not None]
    return " in ".join(shown) or "its end"


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
