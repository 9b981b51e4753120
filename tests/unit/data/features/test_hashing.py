"""XXH64 against the published implementation, on every length that takes another branch."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mtlrec.data.features.hashing import hash_integers, hash_text


@given(words=st.lists(st.text(max_size=40), max_size=20), seed=st.integers(0, 2**64 - 1))
def test_text(words: list[str], seed: int) -> None:
    hashes = hash_text(pa.array(words, pa.string()), seed)
    assert hashes.tolist() == [xxhash.xxh64_intdigest(word.encode(), seed) for word in words]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 12, 31, 32, 33, 64, 100])
def test_every_length(length: int) -> None:
    words = [("ab" * length)[:length], ("xyz" * length)[:length]]
    array = pa.chunked_array([["skipped", *words]]).slice(1).combine_chunks()
    for kind in (pa.string(), pa.large_string()):
        hashes = hash_text(array.cast(kind), 3)
        assert hashes.tolist() == [xxhash.xxh64_intdigest(word.encode(), 3) for word in words]


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint32, np.uint64])
def test_integers_of_any_width(kind: type[np.integer]) -> None:
    values = np.array([0, 1, 100, np.iinfo(kind).max], kind)
    expected = [xxhash.xxh64_intdigest(int(value).to_bytes(8, "little"), 5) for value in values]
    assert hash_integers(values, 5).tolist() == expected


def test_a_negative_integer_is_its_two_s_complement() -> None:
    expected = xxhash.xxh64_intdigest((-7).to_bytes(8, "little", signed=True))
    assert hash_integers(np.array([-7])).tolist() == [expected]
