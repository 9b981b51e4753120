"""glibc's malloc, told to keep what a step frees for the next one."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, OLD_LIMIT = 2**30, 2**25


def keep_freed_memory() -> None:
    """By default malloc gives blocks from 32 MiB on back at once, and what lies free at its end too: a step's
    activations are then fresh pages again at the next step, and the kernel clears them (docs/log.md has what that
    costs). Blocks over 1 GiB, as large tables are, it gives back as ever. Does nothing where there is no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # Older ones take no more than half a heap. Without the first the second would fix the threshold where it is.
    if mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) or mallopt(M_MMAP_THRESHOLD, OLD_LIMIT):
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
