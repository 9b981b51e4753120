"""Work done ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result], ahead: int) -> Generator[Result]:
    """`read` of every item, in order, on `ahead` threads that are at most so many items before the consumer."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="mtlrec-read")
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
