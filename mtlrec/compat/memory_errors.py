"""Errors of an allocation that did not fit.

Upstream: torch has `OutOfMemoryError` for accelerators only. Its CPU allocator raises a plain RuntimeError, told by its
text alone.
Seen in torch 2.13.
Delete when: torch raises a class of its own on the CPU too.
"""

from __future__ import annotations

import re

CPU_ALLOCATOR = re.compile(r"DefaultCPUAllocator: (can't|not enough)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on an accelerator. Does not load torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and CPU_ALLOCATOR.search(str(error)) is not None
