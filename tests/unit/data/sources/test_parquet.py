"""Files found, their footers checked, their row groups read; what is wrong names the file and the column."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlrec.data.ahead import read_ahead
from mtlrec.data.order import EpochOrder, Phase, Piece, Window
from mtlrec.data.sources.arrow_types import is_number
from mtlrec.data.sources.dataset import ColumnUse, Dataset, list_row_groups
from mtlrec.data.sources.parquet import RowGroupReader
from mtlrec.errors import DataError

NUMBER = {"row": [ColumnUse("features.dense.row", is_number, "numbers")]}


def write(folder: Path, sizes: list[int], row_group: int = 10) -> Path:
    first = 0
    for index, rows in enumerate(sizes):
        table = pa.table({"row": np.arange(first, first + rows)})
        pq.write_table(table, folder / f"{index:03d}.parquet", row_group_size=row_group)
        first += rows
    return folder


def rows_of(dataset: Dataset, **options: int) -> list[int]:
    windows = EpochOrder([group.rows for group in dataset.row_groups], 0, [Phase(1, 8)]).windows(0)
    reader = RowGroupReader(dataset, ["row"])
    return [row for _, rows in reader.windows(windows, **options) for row in rows.table["row"].to_pylist()]


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_row_groups_come_in_order(tmp_path: Path, ahead: int) -> None:
    dataset = list_row_groups(str(write(tmp_path, [25, 0, 18])), ["*.parquet"], NUMBER)
    assert [group.rows for group in dataset.row_groups] == [10, 10, 5, 10, 8]
    assert rows_of(dataset, ahead=ahead) == list(range(43))


WORDS, FLAGS = ["a", None, "b"], [True, None, False]


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (pa.array(FLAGS), pa.array([3, None, 4]), [1, None, 0, 3, None, 4]),
        (pa.array([1, None, 2]), pa.array([1.5, 2.5, None]).cast(pa.decimal128(4, 1)), [1, None, 2, 1.5, 2.5, None]),
        (pa.array([1.5, None, 2], pa.float16()), pa.array(FLAGS), [1.5, None, 2, 1, None, 0]),
        (pa.array(WORDS).dictionary_encode(), pa.array(WORDS), WORDS * 2),
        (pa.array(WORDS), pa.array([None] * 3), [*WORDS, None, None, None]),
        (
            pa.array([[1], None, []], pa.list_(pa.int8())),
            pa.array([[2**40], [], None]),
            [[1], None, [], [2**40], [], None],
        ),
        (pa.array([FLAGS] * 3), pa.array([[3]] * 3), [[1, None, 0]] * 3 + [[3]] * 3),
        (pa.array([1.0, 2, 3]), pa.array([2**60 + 1, 2, 3]), [1, 2, 3, 2.0**60, 2, 3]),
        (pa.array([[], None, []]), pa.array([[1], [], None]), [[], None, [], [1], [], None]),
    ],
)
def test_files_that_were_not_written_alike_are_read_together(
    tmp_path: Path, first: pa.Array, second: pa.Array, together: list[object]
) -> None:
    for index, values in enumerate((first, second)):
        pq.write_table(pa.table({"row": values}), tmp_path / f"{index}.parquet")
    dataset = list_row_groups(str(tmp_path), ["*.parquet"], {"row": [ColumnUse("k", lambda kind: True, "")]})
    window = Window((Piece(0, range(3)), Piece(1, range(3))), None)
    ((_, rows),) = RowGroupReader(dataset, ["row"]).windows([window])
    assert rows.table["row"].to_pylist() == together


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array(WORDS), pa.array([1, 2, 3])),
        (pa.array([[1], [2], []]), pa.array([1, 2, 3])),
        (pa.array(FLAGS), pa.array(WORDS)),
        (pa.array([-1, 2, 3]), pa.array([2**63, 1, 2], pa.uint64())),
        (pa.array([[-1], [2], []]), pa.array([[2**63], [1], []], pa.list_(pa.uint64()))),
    ],
)
def test_types_that_do_not_go_together_are_told_when_listed(tmp_path: Path, first: pa.Array, second: pa.Array) -> None:
    for index, values in enumerate((first, second)):
        pq.write_table(pa.table({"row": values}), tmp_path / f"{index}.parquet")
    column_uses = {"row": [ColumnUse("k", lambda kind: True, "")]}
    with pytest.raises(DataError, match=r"1\.parquet: column 'row' is .*, in .*0\.parquet it is"):
        list_row_groups(str(tmp_path), ["*.parquet"], column_uses)
    dataset = list_row_groups(str(tmp_path), ["*.parquet"], column_uses, on_error="skip_file")
    assert [file.below_root for file in dataset.files] == ["0.parquet"]
    assert len(dataset.left_out) == 1


def test_pieces_of_a_row_group(tmp_path: Path) -> None:
    dataset = list_row_groups(str(write(tmp_path, [25])), ["*.parquet"], NUMBER)
    window = Window((Piece(1, range(3, 6)), Piece(2, np.array([0, 4]))), None)
    ((_, rows),) = RowGroupReader(dataset, ["row"]).windows([window])
    assert rows.table["row"].to_pylist() == [13, 14, 15, 20, 24]
    assert rows.where(1).endswith("000.parquet: row group 1, row 4")
    assert rows.where(4).endswith("000.parquet: row group 2, row 4")


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    for day, country in ((1, "de"), (2, "%2Fx"), (3, "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "log" / f"day={day}" / f"country={country}"
        folder.mkdir(parents=True)
        write(folder, [2])
        (folder / "_SUCCESS").touch()
    any_type, numbers = ColumnUse("k", lambda kind: True, ""), ColumnUse("n", is_number, "numbers")
    column_uses = {"row": [any_type], "day": [any_type, numbers], "country": [any_type]}
    dataset = list_row_groups(str(tmp_path), ["log"], column_uses)
    windows = EpochOrder([2, 2, 2], 0, [Phase(1, 8, shuffle_buffer=10)]).windows(0)
    ((_, rows),) = RowGroupReader(dataset, ["row", "day", "country"]).windows(windows)
    assert rows.table["day"].to_pylist() == [1, 1, 2, 2, 3, 3]
    assert rows.table["day"].type == pa.int64()
    assert rows.table["country"].to_pylist() == ["de", "de", "/x", "/x", None, None]
    ((_, everything),) = RowGroupReader(dataset, None).windows(windows)
    assert everything.table.column_names == ["row", "day", "country"]
    with pytest.raises(DataError, match="no column 'hour'; the file has row, day, country"):
        list_row_groups(str(tmp_path), ["log"], {"hour": []})


def test_mistakes_name_the_file_and_the_column(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(DataError, match=r"no file matches .*nothing-\*\.parquet"):
        list_row_groups(root, ["nothing-*.parquet"], {})
    write(tmp_path, [3])
    with pytest.raises(DataError, match=r"000\.parquet: no column 'age', which age reads; the file has row"):
        list_row_groups(root, ["*.parquet"], {"age": [ColumnUse("age", is_number, "numbers")]})
    pq.write_table(pa.table({"row": ["a"]}), tmp_path / "001.parquet")
    with pytest.raises(DataError, match=r"001\.parquet: column 'row' is string; features\.dense\.row takes numbers"):
        list_row_groups(root, ["*.parquet"], NUMBER)
    with pytest.raises(DataError, match=r"001\.parquet: column 'row' is string, in .*000\.parquet it is int64"):
        list_row_groups(root, ["*.parquet"], {"row": []})
    for content in (b"PAR1 and then nothing", b""):
        (tmp_path / "001.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"001\.parquet: not a readable Parquet file"):
            list_row_groups(root, ["*.parquet"], NUMBER)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", [0])
    with pytest.raises(DataError, match="no rows"):
        list_row_groups(root, ["empty/*.parquet"], NUMBER)
    (tmp_path / "002.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"002\.parquet: not a readable Parquet file"):
        list_row_groups(root, ["002*.parquet"], NUMBER)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow: matches hollow but is a folder without Parquet files"):
        list_row_groups(root, ["hollow"], NUMBER)


def test_files_are_left_out_so_long_as_one_is_left(tmp_path: Path) -> None:
    write(tmp_path, [3, 4])
    (tmp_path / "001.parquet").write_bytes(b"")
    dataset = list_row_groups(str(tmp_path), ["*.parquet"], NUMBER, on_error="skip_file")
    assert dataset.rows == 3
    assert len(dataset.left_out) == 1
    assert "001.parquet: not a readable Parquet file" in dataset.left_out[0].message
    (tmp_path / "000.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"no rows; .*000\.parquet: not a readable"):
        list_row_groups(str(tmp_path), ["*.parquet"], NUMBER, on_error="skip_file")


def test_a_file_that_is_left_out_sets_no_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "a.parquet")
    for name in "bc":
        pq.write_table(pa.table({"x": [1], "y": [1]}), tmp_path / f"{name}.parquet")
    dataset = list_row_groups(str(tmp_path), ["*.parquet"], {"x": [], "y": []}, on_error="skip_file")
    assert [file.below_root for file in dataset.files] == ["b.parquet", "c.parquet"]


@pytest.mark.parametrize("pattern", ["*.parquet", "**/*.parquet", "00[01].parquet", "00?.parquet", "."])
def test_patterns(tmp_path: Path, pattern: str) -> None:
    root = tmp_path / "br[x] ü*"
    root.mkdir()
    write(root, [3, 4])
    (root / ".hidden.parquet").write_bytes(b"")
    assert rows_of(list_row_groups(str(root), [pattern, "001.parquet"], NUMBER)) == list(range(7))


def test_a_pattern_may_be_absolute_and_a_root_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [3, 4])
    assert rows_of(list_row_groups("elsewhere", [f"{tmp_path}/*.parquet"], NUMBER)) == list(range(7))
    monkeypatch.chdir(tmp_path.parent)
    dataset = list_row_groups(tmp_path.name, ["*.parquet"], NUMBER)
    assert dataset.fingerprint == list_row_groups(str(tmp_path), ["*.parquet"], NUMBER).fingerprint
    assert dataset.files[0].name == f"{tmp_path.name}/000.parquet"


def test_reading_ahead_keeps_the_order_and_stops(tmp_path: Path) -> None:
    started = []

    def slow(item: int) -> int:
        started.append(item)
        time.sleep(0.01 * (item % 3))
        return item

    assert list(read_ahead(range(20), slow, 4)) == list(range(20))
    started.clear()
    some = read_ahead(range(1000), slow, 4)
    assert next(some) == 0
    some.close()
    assert len(started) < 20


def test_structs_whose_fields_differ_are_told_apart(tmp_path: Path) -> None:
    for name, field in (("a", "id"), ("b", "item")):
        kind = pa.list_(pa.struct([("w", pa.int64()), (field, pa.int64())]))
        pq.write_table(pa.table({"u": pa.array([[{"w": 7, field: 3}]], kind)}), tmp_path / f"{name}.parquet")
    is_pair = ColumnUse("features.sparse.u", lambda kind: kind.value_type.num_fields == 2, "structs of two")
    with pytest.raises(DataError, match=r"b\.parquet: column 'u' is list<.*item.*in .*a\.parquet it is list<"):
        list_row_groups(str(tmp_path), ["*.parquet"], {"u": [is_pair]})


def test_what_reads_a_folders_column_decides_its_type(tmp_path: Path) -> None:
    text = ColumnUse(
        "features.sparse.device", lambda kind: pa.types.is_string(kind) or pa.types.is_integer(kind), "both"
    )
    number = ColumnUse("features.dense.device", is_number, "numbers")
    for value in ("3", "07", "unknown"):
        (tmp_path / f"device={value}").mkdir()
        write(tmp_path / f"device={value}", [2])
    for pattern in ("device=3", "device=*"):  # as text whatever else is listed
        assert list_row_groups(str(tmp_path), [pattern], {"device": [text]}).partition_types == {"device": pa.string()}
    assert list_row_groups(str(tmp_path), ["device=0*"], {"device": [number]}).partition_types == {"device": pa.int64()}
    message = r"device=unknown/000\.parquet: device=unknown is no whole number; features\.dense\.device takes numbers"
    with pytest.raises(DataError, match=message):
        list_row_groups(str(tmp_path), ["device=*"], {"device": [number, text]})
    dataset = list_row_groups(str(tmp_path), ["device=*"], {"device": [number]}, on_error="skip_row")
    assert dataset.rows == 4
    assert dataset.left_out[0].rows == 2


def test_a_footer_is_read_once_for_all_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = list_row_groups(str(write(tmp_path, [95, 30])), ["*.parquet"], NUMBER)
    read: list[object] = []
    footer = pq.read_metadata
    monkeypatch.setattr(pq, "read_metadata", lambda handle: read.append(handle) or footer(handle))
    assert rows_of(dataset) == list(range(125))
    assert len(read) == 2


def test_a_fingerprint_tells_row_groups_of_other_sizes_apart(tmp_path: Path) -> None:
    """The same names, and as many row groups of other rows: a position in the one is none in the other."""
    found = []
    for name, sizes in (("a", [10, 12]), ("b", [10, 13]), ("c", [10, 12])):
        (tmp_path / name).mkdir()
        found.append(list_row_groups(str(write(tmp_path / name, sizes)), ["*.parquet"], NUMBER).fingerprint)
    assert found[0] != found[1]
    assert found[0] == found[2]
