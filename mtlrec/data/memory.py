"""Memory for batches and their columns.

Arrow's pool keeps the pages of what was freed; what malloc hands to a thread for an array of this size is often fresh,
and the first touch of a fresh page costs as much as several copies of it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def empty(size: int, dtype: type[np.generic]) -> np.ndarray:
    """[size] from Arrow's memory pool, its content undefined."""
    return np.frombuffer(pa.allocate_buffer(size * np.dtype(dtype).itemsize), dtype, size)


def copied(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """[N] as another type, whether or not it loses digits; to be written to, which Arrow's own arrays are not."""
    out = empty(len(array), dtype)
    np.copyto(out, array, casting="unsafe")
    return out


def ones(size: int, dtype: type[np.generic]) -> np.ndarray:
    """[size] from Arrow's memory pool."""
    out = empty(size, dtype)
    out.fill(1)
    return out


def concatenated(arrays: list[np.ndarray], size: int, dtype: type[np.generic]) -> np.ndarray:
    """1-dimensional arrays one after another, `size` elements in all."""
    return np.concatenate(arrays, out=empty(size, dtype), casting="same_kind") if arrays else empty(0, dtype)
