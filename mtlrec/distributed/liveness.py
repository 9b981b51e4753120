"""Which rank keeps the others waiting: each tells the store, now and then, that it lives and where it stands.

A collective that one rank does not come to says only "timed out" on the others. Here they look up who has fallen
silent (stopped, its machine or network gone) and at which line of code the rest stand, and say so: a first time after
half of the time that a collective may take, and once more in the error that ends the run.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

PACKAGE = str(Path(__file__).parents[1])
TIMED_OUT = "(?i)timed out waiting|wait timeout|(connect|application) timeout"  # gloo, where some rank did not come
BEAT_S = 2.0


class RankMissing(RuntimeError):
    """A collective took longer than `train.timeout_s`; the message tells where every rank stood."""


class Liveness(AbstractContextManager["Liveness"]):
    """Entered for as long as the group lives; turns a collective's timeout into RankMissing.

    Args:
        store: shared by all ranks
        timeout_s: of a collective; without `tick` for half as long the rank looks what the others do
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]  # a wait on a connection blocks it for all
        self._rank, self._world_size, self._timeout = rank, world_size, timeout_s
        self._every = min(BEAT_S, timeout_s / 8)
        self._ticks, self._ticked, self._told_at = 0, time.monotonic(), -1
        self._record: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "beats": 0, "ended": False}
        self._lost = False
        self._main = threading.get_ident()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="liveness", daemon=True)

    def __enter__(self) -> Liveness:
        if self._world_size > 1:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self._world_size == 1:
            return
        timed_out = isinstance(error, RuntimeError) and re.search(TIMED_OUT, str(error))
        finding = _sentence(*self._look()) if timed_out else None
        self._closed.set()
        self._thread.join(self._every)
        if error is not None and not self._thread.is_alive():
            self._write(ended=True)
        if finding is not None:
            took = f"a collective took longer than train.timeout_s ({self._timeout:g} s)"
            raise RankMissing(f"{took}: {finding}") from None

    def tick(self) -> None:
        """The rank has got on: a step of training is done, or a batch of an evaluation."""
        self._ticks, self._ticked = self._ticks + 1, time.monotonic()

    # ---- the thread's

    def _beat(self) -> None:
        while not self._closed.wait(self._every):
            self._write()
            waited = time.monotonic() - self._ticked
            if waited > self._timeout / 2 and self._told_at != self._ticks:
                self._told_at = self._ticks
                self._warn(waited)

    def _write(self, ended: bool = False) -> None:
        """A store that does not answer is not asked again (torch logs a stack each time): its rank is gone."""
        if self._lost:
            return
        self._record["beats"] += 1
        record = self._record | {"at": _place(self._main), "ended": ended}
        try:
            self._store.set(_key(self._rank), json.dumps(record))
        except RuntimeError:
            self._lost = True

    def _warn(self, waited: float) -> None:
        silent, standing = self._look()
        if self._rank == min((rank for ranks in standing.values() for rank in ranks), default=self._rank):
            print(f"no step for {waited:.0f} s: {_sentence(silent, standing)}", file=sys.stderr, flush=True)

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
                standing.setdefault(_place(self._main), []).append(rank)
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


def _key(rank: int) -> str:
    return f"mtlrec/alive/{rank}"


def _sentence(silent: list[str], standing: dict[str, list[int]]) -> str:
    places = [f"rank {', '.join(map(str, ranks))} at {place}" for place, ranks in standing.items()]
    return "; ".join([*silent, *sorted(places, key=len)])


def _place(thread: int) -> str:
    """The innermost line of ours that the thread is at, and the innermost of all."""
    innermost = frame = sys._current_frames().get(thread)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    shown = [_line(one) for one in dict.fromkeys([frame, innermost]) if one is not None]
    return " in ".join(reversed(shown)) or "its end"


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
