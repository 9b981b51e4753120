"""Every transform of a column against a plain loop over Python values."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.data.collate import collate
from mtlrec.data.features import vocabulary
from mtlrec.data.features.columns import Columns
from mtlrec.data.features.hashing import hash_text
from mtlrec.errors import DataError
from tests.support.toy import rows_of, toy_tree

ROWS = 10


def job_of(
    sparse: dict[str, Any] | None = None,
    dense: dict[str, Any] | None = None,
    root: Path | str = ".",
    rows: int = ROWS,
) -> JobConfig:
    tree = toy_tree(root)
    tree["tables"] = {"ids": {"rows": rows, "dim": 4}}
    tree["features"] = {
        "sparse": [{"name": "x", "table": "ids"} | (sparse or {})],
        "dense": [{"name": "d", "column": "number"} | (dense or {})],
    }
    tree["tasks"] = [{"name": "click", "label": "click"}]
    return JobConfig.model_validate(tree)


def batch_of(job: JobConfig, x: Any, **more: Any) -> Batch:
    table = pa.table({"x": x, "number": pa.array([0.5] * len(x)), "click": pa.array([1] * len(x))} | more)
    block = Columns.of(job).block(rows_of(table))
    return collate([(block, 0, len(block))], len(block), job.features.collections)


def ids_of(batch: Batch) -> list[list[int]]:
    return [row.tolist() for row in batch.ids()["x"].to_dense()]


def takes(job: JobConfig, kind: pa.DataType) -> bool:
    return all(reader.takes(kind) for reader in Columns.of(job).column_uses["x"])


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64()])
def test_modulo(kind: pa.DataType) -> None:
    job = job_of({"transform": "modulo"})
    assert ids_of(batch_of(job, pa.array([3, 13, None, -1, 127], kind))) == [[3], [3], [], [9], [7]]
    unsigned = pa.array([2**64 - 1, 25], pa.uint64())
    assert ids_of(batch_of(job, unsigned)) == [[(2**64 - 1) % ROWS], [5]]
    assert not takes(job, pa.string())


def test_a_negative_id_of_a_narrow_type_in_a_large_table() -> None:
    tree = job_of().dump()
    tree["tables"]["ids"]["rows"] = 100_000
    for kind in (pa.int8(), pa.int16(), pa.int32()):
        with pytest.raises(DataError, match="row 1: column 'x' holds id -1"):
            batch_of(JobConfig.model_validate(tree), pa.array([1, -1], kind))
        assert ids_of(batch_of(JobConfig.model_validate(tree), pa.array([1, 127], kind))) == [[1], [127]]


@pytest.mark.parametrize("seed", [0, 7])
def test_hash(seed: int) -> None:
    job = job_of({"transform": "hash", "seed": seed})
    words: list[str | None] = ["a", "b", None, "", "ein längeres Wort", "a"]
    expected = [[] if word is None else [xxhash.xxh64_intdigest(word.encode(), seed) % ROWS] for word in words]
    for array in (pa.array(words), pa.array(words, pa.large_string()), pa.array(words).dictionary_encode()):
        assert takes(job, array.type if not pa.types.is_dictionary(array.type) else array.type.value_type)
        assert ids_of(batch_of(job, array)) == expected
    numbers = [[xxhash.xxh64_intdigest(n.to_bytes(8, "little"), seed) % ROWS] for n in (3, 2**40)]
    assert ids_of(batch_of(job, pa.array([3, 2**40]))) == numbers
    lists = pa.array([["a", "b"], None, [], ["b"]])
    assert ids_of(batch_of(job, lists)) == [expected[0] + expected[1], [], [], expected[1]]


def test_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\n\ngreen\n12\n")
    job = job_of({"transform": "vocabulary", "vocabulary": "words.txt"}, root=tmp_path)
    assert ids_of(batch_of(job, pa.array(["green", "blue", None, "red", ""]))) == [[3], [0], [], [1], [2]]
    assert ids_of(batch_of(job, pa.array([["green", "blue"], []]))) == [[3, 0], []]
    assert ids_of(batch_of(job, pa.array([12, 13]))) == [[4], [0]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xef\xbb\xbfa\r\nb\r\n", {"a": 1, "b": 2}),
        (b"a\nb", {"a": 1, "b": 2}),
        (b"", {"": 0, "a": 0}),
        (b"\n", {"": 1, "a": 0}),
        ("a\x85b\n\u2028\n".encode(), {"a\x85b": 1, "\u2028": 2, "a": 0}),
    ],
)
def test_lines_of_a_vocabulary(tmp_path: Path, content: bytes, words: dict[str, int]) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    job = job_of({"transform": "vocabulary", "vocabulary": str(tmp_path / "words.txt")})
    assert ids_of(batch_of(job, pa.array(list(words)))) == [[number] for number in words.values()]


@given(st.lists(st.text(max_size=3), unique=True, max_size=40), st.lists(st.text(max_size=3), max_size=40))
@pytest.mark.parametrize("hashes", [2**64, 3])
def test_words_are_found_whatever_their_hashes(hashes: int, known: list[str], asked: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "hash_text", lambda words: hash_text(words) % np.uint64(min(hashes, 2**64 - 1)))
        ids = vocabulary.Vocabulary(known).ids(pa.array(asked, pa.string())).tolist()
    assert ids == [known.index(word) + 1 if word in known else 0 for word in asked]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (("".join(f"{n}\n" for n in range(200_000)) + "7\n").encode(), "holds '7' twice"),
        (None, "cannot be read"),
        (b"a\nb\na\n", "holds 'a' twice"),
        (b"\xff\n", "is not UTF-8 text"),
        (b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n", "has 10 values, and row 0 is for what it lacks; table 'ids' has 10 rows"),
    ],
)
def test_a_vocabulary_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    rows = 10**6 if content is not None and len(content) > 1000 else ROWS
    with pytest.raises(DataError, match=rf"features\.sparse\.x\.vocabulary: .*words\.txt: {message}"):
        Columns.of(job_of({"transform": "vocabulary", "vocabulary": "words.txt"}, root=tmp_path, rows=rows))


def test_bucketize() -> None:
    job = job_of({"transform": "bucketize", "boundaries": [0, 1.5, 10]})
    values = pa.array([-1.0, 0.0, 1.4, 1.5, math.nan, None, 1e9])
    assert ids_of(batch_of(job, values)) == [[0], [1], [1], [2], [], [], [3]]
    decimals = pa.array([1, 2]).cast(pa.decimal128(21, 2))
    assert ids_of(batch_of(job, decimals)) == [[1], [2]]


def test_the_last_of_a_list() -> None:
    lists = pa.array([[1, 2, 3], [4], None, [5, 6]])
    assert ids_of(batch_of(job_of({"max_length": 2}), lists)) == [[2, 3], [4], [], [5, 6]]
    with pytest.raises(DataError, match=r"row 0: column 'x' holds 3 ids; its max_length is 2"):
        batch_of(job_of({"max_length": 2, "too_long": "error"}), lists)


LISTS = [[1, 2, 3], None, [], [4]]
WEIGHTS = [[0.5, 1.0, 2.0], None, [], [0.25]]


def structs(names: tuple[str, str]) -> list[Any]:
    pairs = zip(LISTS, WEIGHTS, strict=True)
    return [
        None if ids is None else [dict(zip(names, one, strict=True)) for one in zip(ids, w or [], strict=True)]
        for ids, w in pairs
    ]


@pytest.mark.parametrize(
    ("array", "weights"),
    [
        (pa.array(LISTS), "w"),
        (pa.array(LISTS, pa.large_list(pa.int32())), "w"),
        (pa.array(structs(("id", "score"))), "x.score"),
        (pa.array(structs(("key", "value"))), "x.value"),
        (
            pa.array(
                [
                    None if a is None else list(zip(a, w or [], strict=True))
                    for a, w in zip(LISTS, WEIGHTS, strict=True)
                ],
                pa.map_(pa.int64(), pa.float64()),
            ),
            "x.value",
        ),
    ],
    ids=["list", "large_list", "struct", "struct_of_key_and_value", "map"],
)
@pytest.mark.parametrize("max_length", [None, 2])
def test_weighted_ids(array: pa.Array, weights: str, max_length: int | None) -> None:
    job = job_of({"weights": weights, "max_length": max_length})
    assert takes(job, array.type)
    batch = batch_of(job, array, w=pa.array(WEIGHTS))
    most = max_length or 3
    assert ids_of(batch) == [row[-most:] if row else [] for row in LISTS]
    assert batch.ids()["x"].weights().tolist() == [w for row in WEIGHTS for w in (row or [])[-most:]]


def test_ids_without_weights_weigh_one_beside_those_that_have_them() -> None:
    tree = job_of({"weights": "w"}).dump()
    tree["features"]["sparse"].append({"name": "plain", "table": "ids"})
    job = JobConfig.model_validate(tree)
    table = pa.table({"x": LISTS, "w": WEIGHTS, "plain": [1, None, 2, 3], "number": [0.0] * 4, "click": [0] * 4})
    block = Columns.of(job).block(rows_of(table))
    sparse = collate([(block, 0, 4)], 4, job.features.collections).sparse
    assert list(sparse) == ["weighted_bags"]
    assert sparse["weighted_bags"]["x"].weights().tolist() == [0.5, 1.0, 2.0, 0.25]
    assert sparse["weighted_bags"]["plain"].weights().tolist() == [1.0, 1.0, 1.0]


def test_only_ids_of_tables_with_a_weighted_feature_have_weights() -> None:
    """The keys of a collection are in the config's order."""
    tree = job_of({"weights": "w"}).dump()
    tree["tables"]["others"] = {"rows": 10, "dim": 4}
    first, last = ({"name": name, "table": "others"} for name in ("first", "last"))
    shared = {"name": "shared", "table": "ids"}
    tree["features"]["sparse"] = [first, *tree["features"]["sparse"], last, shared]
    job = JobConfig.model_validate(tree)
    more = {"first": [1, 2, 3, 4], "last": [5, None, 6, 7], "shared": [8, 9, 9, 8]}
    batch = batch_of(job, LISTS, w=WEIGHTS, **more)
    assert {name: ids.keys() for name, ids in batch.sparse.items()} == {
        "bags": ["first", "last"],
        "weighted_bags": ["x", "shared"],
    }
    assert batch.sparse["bags"].weights_or_none() is None
    assert batch.sparse["bags"].values().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert batch.sparse["weighted_bags"].weights().tolist() == [0.5, 1.0, 2.0, 0.25, *[1.0] * 4]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0.5, 1.0], None, [], [1.0]], "row 0: column 'w' holds 2 weights for 3 ids"),
        ([[0.5, 1.0, math.inf], None, [], [1.0]], "row 0: column 'w' holds a weight that is null or not finite"),
        ([[0.5, 1.0, 2.0], None, [], [None]], "row 3: column 'w' holds a weight that is null or not finite"),
    ],
)
def test_bad_weights(weights: list[Any], message: str) -> None:
    job = job_of({"weights": "w"})
    with pytest.raises(DataError, match=message):
        batch_of(job, pa.array(LISTS), w=pa.array(weights))
    tree = job.dump()
    table = pa.table({"x": LISTS, "w": weights, "number": [0.0] * 4, "click": [0] * 4})
    block = Columns.of(JobConfig.model_validate(tree)).block(rows_of(table), "skip_row")
    bad = 0 if "row 0" in message else 3
    assert block.row_mask is not None
    assert block.row_mask.tolist() == [float(row != bad) for row in range(4)]
    assert block.ids[0].lengths is not None
    assert block.ids[0].lengths.tolist() == [0 if row == bad else len(ids or []) for row, ids in enumerate(LISTS)]


@pytest.mark.parametrize(
    ("options", "kind", "is_taken"),
    [
        ({}, pa.int32(), True),
        ({}, pa.list_(pa.int32(), 3), True),
        ({}, pa.string(), False),
        ({}, pa.float32(), False),
        ({}, pa.list_(pa.struct({"id": pa.int64(), "w": pa.float32()})), False),
        ({"transform": "hash"}, pa.list_(pa.string()), True),
        ({"transform": "hash"}, pa.float32(), False),
        ({"transform": "bucketize", "boundaries": [1]}, pa.float32(), True),
        ({"transform": "bucketize", "boundaries": [1]}, pa.string(), False),
        ({"weights": "w"}, pa.int32(), False),
        ({"weights": "x.w"}, pa.struct({"id": pa.int64(), "w": pa.float32()}), False),
        ({"weights": "x.w"}, pa.list_(pa.struct({"id": pa.int64(), "v": pa.float32()})), False),
        ({"weights": "x.w"}, pa.list_(pa.struct({"id": pa.string(), "w": pa.float32()})), False),
        ({"weights": "x.w", "transform": "hash"}, pa.list_(pa.struct({"id": pa.string(), "w": pa.float32()})), True),
    ],
    ids=str,
)
def test_types_that_a_feature_takes(options: dict[str, Any], kind: pa.DataType, is_taken: bool) -> None:
    assert takes(job_of(options), kind) == is_taken


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, lambda x: x),
        ({"transform": "none"}, lambda x: x),
        ({"transform": "clip", "min": 0.0, "max": 3.0}, lambda x: min(max(x, 0), 3)),
        ({"transform": "clip", "max": 3.0}, lambda x: min(x, 3)),
        ({"transform": ["clip", "log1p"], "min": 0.0}, lambda x: math.log1p(max(x, 0))),
        (
            {"transform": ["clip", "log1p", "standardize"], "min": 0.0, "mean": 1.0, "std": 2.0},
            lambda x: (math.log1p(max(x, 0)) - 1) / 2,
        ),
        ({"transform": ["standardize", "clip"], "mean": 1.0, "std": 2.0, "max": 0.5}, lambda x: min((x - 1) / 2, 0.5)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "by_hand",
)
def test_dense_transforms_in_their_order(options: dict[str, Any], by_hand: Any) -> None:
    values = [-2.0, 0.0, None, 1.5, math.nan, 100.0]
    batch = batch_of(job_of(dense=options), pa.array([0] * 6), number=pa.array(values))
    expected = [0.0 if x is None or math.isnan(x) else by_hand(x) for x in values]
    np.testing.assert_allclose(batch.dense[:, 0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [pa.int16(), pa.uint64(), pa.float32(), pa.bool_(), pa.decimal128(21, 2)])
def test_dense_types(kind: pa.DataType) -> None:
    batch = batch_of(job_of(), pa.array([0] * 3), number=pa.array([0, 1, None]).cast(kind))
    assert batch.dense[:, 0].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.5, math.nan]], "row 0: column 'x' holds a null in a list"),
        ([[0.5], [math.inf]], "row 1: column 'x' holds an infinite number"),
        ([0.5, -math.inf], "row 1: column 'x' holds an infinite number"),
    ],
)
def test_buckets_are_of_numbers(values: list[Any], message: str) -> None:
    job = job_of({"transform": "bucketize", "boundaries": [0, 1]})
    with pytest.raises(DataError, match=message):
        batch_of(job, pa.array(values))


@pytest.mark.parametrize("weights", ["w", "x.w"])
def test_weights_with_more_digits_than_float32(weights: str) -> None:
    job = job_of({"weights": weights})
    if weights == "w":
        batch = batch_of(job, pa.array([[3]]), w=pa.array([[2**24 + 1]]))
    else:
        batch = batch_of(job, pa.array([[{"id": 3, "w": 2**24 + 1}]]))
    assert batch.ids()["x"].weights().tolist() == [2.0**24]


def test_more_items_than_32_bit_offsets_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they were that many: Arrow refuses to put lists together."""
    whole = pa.concat_arrays

    def refused(arrays: list[pa.Array]) -> pa.Array:
        if pa.types.is_list(arrays[0].type):
            raise pa.ArrowInvalid("offset overflow while concatenating arrays")
        return whole(arrays)

    monkeypatch.setattr(pa, "concat_arrays", refused)
    assert ids_of(batch_of(job_of(), pa.chunked_array([[[1, 2], []], [[3]]]))) == [[1, 2], [], [3]]


def test_a_file_whose_lists_are_all_empty_knows_no_type() -> None:
    assert ids_of(batch_of(job_of(), pa.array([[], None, []]))) == [[], [], []]
    assert ids_of(batch_of(job_of({"weights": "w"}), pa.array([[], None]), w=pa.array([None, []]))) == [[], []]
