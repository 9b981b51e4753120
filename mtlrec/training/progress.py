"""Progress of long work: a bar on a terminal or in a notebook, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import track

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30
_bars_are_wanted: ContextVar[bool] = ContextVar("bars_are_wanted", default=False)


@contextmanager
def progress_bars(wanted: bool) -> Iterator[None]:
    """Draw progress bars within this block, where there is a terminal or a notebook to draw them on."""
    token = _bars_are_wanted.set(wanted)
    try:
        yield
    finally:
        _bars_are_wanted.reset(token)


def bar_console() -> Console | None:
    """Where bars are drawn; None where they are not wanted or there is only a log."""
    if not _bars_are_wanted.get():
        return None
    console = Console(stderr=True)
    return console if sys.stderr.isatty() or console.is_jupyter else None


def watched(items: Iterable[Item], total: int, what: str, active: bool) -> Iterator[Item]:
    """The items, and how far they are: a bar where bars are drawn, else a line now and then in the log."""
    if not active:
        yield from items
    elif (console := bar_console()) is not None:
        yield from track(items, what, total, console=console, transient=True)
    else:
        told = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            if time.perf_counter() - told > SECONDS_BETWEEN_LINES and done < total:
                told = time.perf_counter()
                logger.info(f"{what}: {done:,} of {total:,} batches")
