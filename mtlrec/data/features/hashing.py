"""XXH64 (Collet, xxHash specification 0.1.1) of whole columns in NumPy.

A published function, so that an id hashed in training is hashed alike by a server in another language, in any version:
text as its UTF-8 bytes, an integer as its eight little-endian bytes. Strings are taken a length at a time, because
equally long ones go the same way through the algorithm.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (
        11400714785074694791,
        14029467366897019727,
        1609587929392839161,
        9650029242287828579,
        2870177450012600261,
    )
)


def hash_integers(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """[N] of any integer type -> [N] uint64."""
    return _xxh64(values.astype("<i8").view(np.uint8), 8, seed)


def hash_text(values: pa.Array, seed: int = 0) -> np.ndarray:
    """A string array of N without nulls -> [N] uint64. Each distinct string is hashed once."""
    coded = values.dictionary_encode()
    words = coded.dictionary.cast(pa.large_binary())
    _, offsets_buffer, data_buffer = words.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[words.offset : words.offset + len(words) + 1]
    data = np.frombuffer(data_buffer if data_buffer is not None else b"", np.uint8)
    lengths = np.diff(offsets)
    hashes = np.empty(len(words), np.uint64)
    for length in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == length)
        rows = data[offsets[which][:, None] + np.arange(length)]
        hashes[which] = _xxh64(rows.reshape(-1), length, seed) if length else _xxh64(np.empty(0, np.uint8), 0, seed)
    return hashes[np.asarray(coded.indices)]


def _xxh64(data: np.ndarray, length: int, seed: int) -> np.ndarray:
    """data: the bytes of N equally long inputs, one after another."""
    rows = data.reshape(-1, length) if length else data.reshape(1, 0)
    start = np.full(len(rows), seed % 2**64, np.uint64)
    at = 0
    with np.errstate(over="ignore"):
        if length >= 32:
            lanes = [start + _P1 + _P2, start + _P2, start, start - _P1]
            while at <= length - 32:
                lanes = [_round(lane, _word(rows, at + 8 * i, 8)) for i, lane in enumerate(lanes)]
                at += 32
            out = _rotated(lanes[0], 1) + _rotated(lanes[1], 7) + _rotated(lanes[2], 12) + _rotated(lanes[3], 18)
            for lane in lanes:
                out = (out ^ _round(np.zeros_like(lane), lane)) * _P1 + _P4
        else:
            out = start + _P5
        out = out + np.uint64(length)
        while at <= length - 8:
            out = _rotated(out ^ _round(np.zeros_like(out), _word(rows, at, 8)), 27) * _P1 + _P4
            at += 8
        if at <= length - 4:
            out = _rotated(out ^ (_word(rows, at, 4) * _P1), 23) * _P2 + _P3
            at += 4
        for index in range(at, length):
            out = _rotated(out ^ (rows[:, index].astype(np.uint64) * _P5), 11) * _P1
        out = (out ^ (out >> np.uint64(33))) * _P2
        out = (out ^ (out >> np.uint64(29))) * _P3
        return out ^ (out >> np.uint64(32))


def _round(lane: np.ndarray, word: np.ndarray) -> np.ndarray:
    return _rotated(lane + word * _P2, 31) * _P1


def _rotated(values: np.ndarray, bits: int) -> np.ndarray:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def _word(rows: np.ndarray, at: int, size: int) -> np.ndarray:
    """[N] uint64: `size` bytes of every row, read little-endian."""
    part = np.ascontiguousarray(rows[:, at : at + size])
    return part.view(f"<u{size}")[:, 0].astype(np.uint64)
