"""glibc's malloc, told to keep what a step frees for the next one.

Upstream: torch's CPU allocator is the system's malloc. It gives blocks from 32 MiB on back to the kernel at once, so a
step's activations are fresh pages again at the next step. torch keeps what is freed for GPUs only.
Seen in torch 2.13 with glibc.
Delete when: torch's CPU allocator keeps freed blocks.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, OLD_LIMIT = 2**30, 2**25


def keep_freed_memory() -> None:
    """Keep freed blocks up to 1 GiB and the free memory at malloc's end. docs/log.md has what they cost otherwise.

    Larger blocks, as large tables are, go back as ever. Does nothing where there is no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # Older ones take no more than half a heap. Without the first the second would fix the threshold where it is.
    if mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) or mallopt(M_MMAP_THRESHOLD, OLD_LIMIT):
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
