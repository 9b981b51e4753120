"""Vocabularies: a text file of one value per line; line n is id n, and what is not there is id 0."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlrec.config import SparseFeature
from mtlrec.data.features.hashing import hash_text
from mtlrec.data.sources.files import Store, store_of
from mtlrec.errors import DataError
from mtlrec.io import one_line


class Vocabulary:
    """Distinct values as text, in the order of their ids, and where their hashes lie.

    Arrow's own look-up builds its table of the words anew each time, which for millions of them takes longer than all
    else that is done with a window.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = pa.array(words, pa.large_string())
        hashes = hash_text(self.words)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for the same words in the same order."""
        return hashlib.sha256("\n".join(self.words.to_pylist()).encode()).hexdigest()[:12]

    def ids(self, values: pa.Array) -> np.ndarray:
        """values [M] text or numbers, which are looked up as they are written -> [M] int64, 0 for what is not there."""
        coded = pc.cast(values, pa.large_string()).dictionary_encode()
        found = self._found(coded.dictionary)
        return found[np.asarray(coded.indices)] if len(found) else np.zeros(len(values), np.int64)

    def _found(self, words: pa.Array) -> np.ndarray:
        """[M] distinct words -> [M] int64. Where hashes meet, which of 2^64 few do, the words themselves decide."""
        if not len(self.words):
            return np.zeros(len(words), np.int64)
        hashes = hash_text(words)
        first = np.searchsorted(self._hashes, hashes, side="left")
        behind = np.searchsorted(self._hashes, hashes, side="right")
        ids = np.zeros(len(words), np.int64)
        for step in range(int((behind - first).max(initial=0))):
            candidates = self._order[np.minimum(first + step, len(self._order) - 1)]
            is_same = np.asarray(pc.equal(self.words.take(pa.array(candidates)), words))
            ids = np.where(is_same & (first + step < behind), candidates + 1, ids)
        return ids


def place_of(root: str, file: str) -> tuple[Store, str]:
    """Where a vocabulary lies: below data.root, or with a slash in front anywhere on this machine's disk."""
    store = store_of("/" if file.startswith("/") else root)
    return store, f"{store.base.rstrip('/')}/{file.lstrip('/')}"


def read_vocabulary(root: str, feature: SparseFeature, rows: int) -> Vocabulary:
    """Raises DataError where the feature's file cannot be read, holds a value twice or outgrows its table."""
    store, key = place_of(root, str(feature.vocabulary))
    where = f"features.sparse.{feature.name}.vocabulary: {store.name(key)}"
    try:
        with store.system.open_input_stream(key) as source:
            text = source.read().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({one_line(error)}); `mtlrec prepare stats` makes it") from None
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text; save it as such") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    if len(lines) >= rows:
        message = (
            f"has {len(lines):,} values, and row 0 is for what it lacks; table '{feature.table}' has {rows:,} rows"
        )
        raise DataError(f"{where}: {message}; raise tables.{feature.table}.rows to {len(lines) + 1}")
    seen: set[str] = set()
    for line in lines:
        if line in seen:
            raise DataError(f"{where}: holds '{line}' twice; remove one")
        seen.add(line)
    return Vocabulary(lines)
