"""Raw values of any make become columns, or their row's fault."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtlrec.data.features.columns import Columns
from mtlrec.data.features.row_errors import RawRowErrors
from mtlrec.data.sources.dataset import ColumnUse
from mtlrec.errors import DataError
from mtlrec.serving.rows import arrow_column, columns_of, shown
from tests.support.toy import toy_job, toy_tree

COLUMN_USES = Columns.of(toy_job(), with_labels=False).column_uses
IDS, LISTS, NUMBERS = COLUMN_USES["user_id"], COLUMN_USES["recent_items"], COLUMN_USES["age"]


NAN = float("nan")


class Missing(list[Any]):
    """Knows what is missing, as pandas' columns do."""

    def isna(self) -> list[bool]:
        return [value != value for value in self]


def words() -> list[ColumnUse]:
    tree = toy_tree()
    tree["features"]["sparse"][0] |= {"transform": "hash"}
    return Columns.of(type(toy_job()).model_validate(tree), with_labels=False).column_uses["user_id"]


def converted(values: Any, column_uses: Sequence[ColumnUse]) -> tuple[list[Any], dict[int, str]]:
    row_errors = RawRowErrors(len(values))
    column = arrow_column(values, len(values), "c", column_uses, row_errors)
    return column.to_pylist(), row_errors.reasons


@pytest.mark.parametrize(
    ("values", "column_uses", "expected"),
    [
        ([3, None, 4], IDS, [3, None, 4]),
        (np.array([3, 4], np.uint8), IDS, [3, 4]),
        (pa.array([3, 4], pa.int16()), IDS, [3, 4]),
        (pa.chunked_array([[3], [4]]), IDS, [3, 4]),
        (pa.array(["b", "a"]).dictionary_encode(), words(), ["b", "a"]),
        ([None, None], IDS, [None, None]),
        ([[1, 2], [], None], LISTS, [[1, 2], [], None]),
        ([[], []], LISTS, [[], []]),
        ([5, [1, 2], None], LISTS, [[5], [1, 2], None]),
        (np.array([[1, 2], [3, 4]]), LISTS, [[1, 2], [3, 4]]),
        ([1, 2.5, True], NUMBERS, [1.0, 2.5, 1.0]),
        ([7, "x"], words(), ["7", "x"]),
        ([7, ["x"]], words(), [["7"], ["x"]]),
        ([2**64 - 1, 3], IDS, [2**64 - 1, 3]),
        ([[2**64 - 1], 3], LISTS, [[2**64 - 1], [3]]),
        (np.ma.MaskedArray([1, 2], [False, True]), IDS, [1, None]),
        (Missing(["a", NAN]), words(), ["a", None]),
    ],
)
def test_what_features_take(values: Any, column_uses: list[ColumnUse], expected: list[Any]) -> None:
    assert converted(values, column_uses) == (expected, {})


@pytest.mark.parametrize(
    ("values", "column_uses", "wrong"),
    [
        ([3, "x", 4], IDS, {1: "'x'"}),
        ([2**63, "x", 5, -1], IDS, {1: "'x'", 3: "-1"}),
        (Missing(["a", NAN, 3.5]), words(), {2: "3.5"}),
        (np.ma.MaskedArray(["a", "b", 3.5], [False, True, False], object), words(), {2: "3.5"}),
        ([3, 4.5, True], IDS, {1: "4.5", 2: "True"}),
        (["a", "b"], IDS, {0: "'a'", 1: "'b'"}),
        (pa.array(["a", None]), IDS, {0: "'a'"}),
        ([2**70, 3], IDS, {0: "1180591620717411303424"}),
        ([[1], [[2]], ["x"], {"a": 1}], LISTS, {1: "[[2]]", 2: "['x']", 3: "{'a': 1}"}),
        ([[], 1.5, {}], NUMBERS, {0: "[]", 2: "{}"}),
        ([1.5, "x", object, b"\xff", 1j], NUMBERS, {1: "'x'", 2: "object", 3: "ff", 4: "1j"}),
        (["\ud800", "fine"], words(), {0: "ud800"}),
        ([np.zeros((2, 2)), [1]], LISTS, {0: "array"}),
    ],
)
def test_what_they_do_not_take_is_their_rows_fault(
    values: Any, column_uses: list[ColumnUse], wrong: dict[int, str]
) -> None:
    column, reasons = converted(values, column_uses)
    assert reasons.keys() == wrong.keys()
    for row, words_ in wrong.items():
        assert words_ in reasons[row]
        assert f"{column_uses[0].key} takes {column_uses[0].wants}" in reasons[row]
        assert column[row] is None
    for row, value in enumerate(values):
        is_missing = value is None or value is np.ma.masked or value is NAN or str(value) == "None"
        assert (column[row] is None) == (row in wrong or is_missing)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}], "list given; a dict of columns"),
        ({}, "no columns"),
        ({"a": [1, 2], "b": [1]}, "column 'a' has 2 values and 'b' 1"),
        ({"a": 5}, "column 'a' is no list"),
        ({"a": "abc"}, "column 'a' is no list"),
        ({"a": np.array(5)}, "column 'a' is no list"),
        ({"a": iter([1])}, "column 'a' is no list"),
        ({"a": {1, 2}}, "column 'a' is no list"),
        (pa.table([[1], [2]], names=["a", "a"]), "several columns are called a"),
    ],
)
def test_rows_of_no_certain_number_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns_of(rows, ["a", "b"])


def test_columns_that_are_not_read_are_left_aside() -> None:
    assert columns_of({"a": [1, 2], "request": "abc", "note": [1]}, ["a", "b"]) == ({"a": [1, 2]}, 2)
    assert columns_of(pa.table([[1], [2], [3]], names=["x", "x", "a"]), ["a"])[1] == 1
    assert columns_of({"row": [1, 2, 3]}, ["a"])[1] == 3  # all that is read may be shared


def test_a_column_whose_length_lies_is_refused() -> None:
    class Liar(list[int]):
        def __len__(self) -> int:
            return 3

    with pytest.raises(DataError, match="says that it has 3 values"):
        arrow_column(Liar([1, 2]), 3, "c", IDS, RawRowErrors(3))


def test_lists_that_have_no_end_are_their_rows_fault() -> None:
    """Arrow's own conversion of either ends the process."""
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    view: dict[str, Any] = {}
    view["a"] = view.values()
    _, reasons = converted([[1], endless, {"a": endless}, view["a"]], LISTS)
    assert reasons.keys() == {1, 2, 3}
    row_errors = RawRowErrors(2)
    assert arrow_column([deep, [2]], 2, "c", LISTS, row_errors).to_pylist() == [None, [2]]
    assert row_errors.reasons.keys() == {0}


def test_messages_stay_short_and_one_line() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown("a\nb" * 1000).count("\n") == 0
    assert len(shown("a\nb" * 1000)) <= 60
    assert shown(Loud()) == "a Loud"
