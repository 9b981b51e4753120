"""Every row exactly once per epoch, on the same steps for every rank, and any position reached again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlrec.data.parquet import DataError, RowGroup, list_row_groups, read_batches, share, steps_per_epoch


def write(folder: Path, sizes: list[int], row_group: int) -> list[RowGroup]:
    first = 0
    for index, rows in enumerate(sizes):
        table = pa.table({"row": np.arange(first, first + rows)})
        pq.write_table(table, folder / f"{index:03d}.parquet", row_group_size=row_group)
        first += rows
    return list_row_groups(folder, ["*.parquet"], ["row"])


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    row_group=st.integers(1, 17),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 13),
    shuffle=st.sampled_from(["none", "row_group", "rows"]),
    buffer=st.integers(1, 50),
    epoch=st.integers(0, 3),
    stop=st.integers(0, 100),
)
def test_every_row_once_same_steps_and_resumable(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    row_group: int,
    world_size: int,
    batch_size: int,
    shuffle: str,
    buffer: int,
    epoch: int,
    stop: int,
) -> None:
    groups = write(tmp_path_factory.mktemp("data"), sizes, row_group)
    steps = steps_per_epoch(groups, batch_size, world_size)
    seen: list[int] = []
    shapes = set()
    for rank in range(world_size):
        options = (["row"], batch_size, rank, world_size, shuffle, buffer, 7, epoch)
        batches = list(read_batches(groups, *options))  # type: ignore[arg-type]
        rows = [batch.table["row"].to_pylist() for batch in batches]
        seen += [row for batch in rows for row in batch]
        shapes.add(tuple(batch.padded_rows for batch in batches))
        mine = len(share(sum(sizes), rank, world_size))
        assert sum(len(batch) for batch in rows) == mine
        assert [len(batch) for batch in rows[:-1]] == [min(batch_size, mine)] * (
            len(rows) - 1
        )  # only the end is padded
        start = min(stop, steps)
        again = read_batches(groups, *options, start)  # type: ignore[arg-type]
        assert [batch.table["row"].to_pylist() for batch in again] == rows[start:]
    assert sorted(seen) == list(range(sum(sizes)))
    assert len(shapes) == 1, "ranks must take equally many, equally large batches"
    assert len(shapes.pop()) == steps


def test_shuffling_depends_on_seed_and_epoch_only(tmp_path: Path) -> None:
    groups = write(tmp_path, [50, 50], 10)

    def order(seed: int, epoch: int, shuffle: str = "rows") -> list[int]:
        batches = read_batches(groups, ["row"], 8, shuffle=shuffle, shuffle_buffer=30, seed=seed, epoch=epoch)  # type: ignore[arg-type]
        return [row for batch in batches for row in batch.table["row"].to_pylist()]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    assert order(0, 0, "none") == list(range(100))
    by_group = order(0, 0, "row_group")
    assert by_group != list(range(100))
    assert all(by_group[i : i + 10] == list(range(by_group[i], by_group[i] + 10)) for i in range(0, 100, 10))


def test_mistakes_name_the_file_and_the_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches .*nothing-\*\.parquet"):
        list_row_groups(tmp_path, ["nothing-*.parquet"], [])
    write(tmp_path, [3], 10)
    with pytest.raises(DataError, match=r"000\.parquet: no column 'age'; the file has row"):
        list_row_groups(tmp_path, ["*.parquet"], ["age"])
    (tmp_path / "001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"001\.parquet: not a readable Parquet file"):
        list_row_groups(tmp_path, ["*.parquet"], ["row"])
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"row": pa.array([], pa.int64())}), tmp_path / "empty" / "000.parquet")
    with pytest.raises(DataError, match="no rows"):
        list_row_groups(tmp_path / "empty", ["*.parquet"], ["row"])


def test_a_pattern_may_be_absolute(tmp_path: Path) -> None:
    groups = write(tmp_path, [3, 4], 10)
    assert list_row_groups(Path("elsewhere"), [f"{tmp_path}/*.parquet"], ["row"]) == groups


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    root = tmp_path / "br[x] ü*"
    root.mkdir()
    assert len(write(root, [3, 4], 10)) == 2


def test_what_matches_but_cannot_be_read_is_no_silent_loss(tmp_path: Path) -> None:
    write(tmp_path, [3], 10)
    (tmp_path / "001.parquet").mkdir()
    with pytest.raises(DataError, match=r"001\.parquet: matches .* but is a folder or a broken link"):
        list_row_groups(tmp_path, ["*.parquet"], ["row"])


def test_a_column_of_another_kind_names_both_files(tmp_path: Path) -> None:
    write(tmp_path, [3], 10)
    pq.write_table(pa.table({"row": ["a"]}), tmp_path / "001.parquet")
    with pytest.raises(DataError, match=r"001\.parquet: column 'row' is string, in .*000\.parquet it is int64"):
        list_row_groups(tmp_path, ["*.parquet"], ["row"])


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    groups = write(tmp_path, [40], 10)
    path = tmp_path / "000.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"000\.parquet: row group 0 cannot be read"):
        list(read_batches(groups, ["row"], 8))
