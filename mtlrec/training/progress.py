"""Progress of long work: a bar on a terminal or in a notebook, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30


def watched(items: Iterable[Item], total: int, what: str, active: bool) -> Iterator[Item]:
    """The items, and how far they are: a bar on a terminal, a line now and then in a log."""
    if not active:
        yield from items
    elif sys.stderr.isatty():
        yield from track(items, what, total, console=Console(stderr=True), transient=True)
    else:
        told = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            if time.perf_counter() - told > SECONDS_BETWEEN_LINES and done < total:
                told = time.perf_counter()
                logger.info(f"{what}: {done:,} of {total:,} batches")
