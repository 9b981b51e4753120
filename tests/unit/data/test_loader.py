"""The loader: any position reached again bit by bit, other ranks in mid-epoch, threads, errors, an early end."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.data.loader import Loader
from mtlrec.data.order import Position
from mtlrec.errors import DataError
from tests.support.toy import loader_of, toy_job, toy_table, toy_tree, write_toy

ROW_JOB = {
    "tables": {"row": {"rows": 1000, "dim": 4}},
    "features": {"sparse": [{"name": "row", "table": "row"}]},
    "tasks": [{"name": "click", "label": "is_click"}],
}


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(one.dense, other.dense), (one.targets, other.targets), (one.in_space, other.in_space)]
    pairs += [(one.entire_space, other.entire_space), (one.sample_weights, other.sample_weights)]
    pairs += [(one.row_mask, other.row_mask)]
    for name, ids in one.ids().items():
        pairs += [(ids.values(), other.ids()[name].values()), (ids.lengths(), other.ids()[name].lengths())]
    return all(torch.equal(a, b) for a, b in pairs)


def shuffled(root: Path, rank: int = 0, world_size: int = 1) -> Loader:
    return loader_of(toy_job(root), rank, world_size, shuffle="rows", seed=3)


def test_an_epoch_can_be_entered_anywhere(tmp_path: Path) -> None:
    write_toy(tmp_path)
    for one in [shuffled(tmp_path, rank, 2) for rank in range(2)]:
        assert one.steps_per_epoch == 5
        start = Position(1)
        whole = list(one.epoch(start))
        assert len(whole) == 5
        for steps in range(5):
            position = one.after(start, steps) if steps else start
            assert one.steps_left(position) == 5 - steps
            rest = list(shuffled(tmp_path, one._rank, 2).epoch(Position.of(position.state_dict())))
            assert all(equal(a, b) for a, b in zip(rest, whole[steps:], strict=True))
        assert one.after(start, 5) == Position(2)
    ranks = [shuffled(tmp_path, rank, 2) for rank in range(2)]
    assert sum(float(batch.row_mask.sum()) for one in ranks for batch in one.epoch()) == 557


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    row_group=st.integers(1, 17),
    worlds=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(1, 9),
            st.integers(0, 5),
            st.sampled_from(["none", "row_group", "rows"]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=4,
    ),
    buffer=st.integers(1, 50),
)
def test_every_row_once_through_the_files(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    row_group: int,
    worlds: list[tuple[int, int, int, str, int]],
    buffer: int,
) -> None:
    """Ranks, batch sizes, shuffles and seeds change in mid-epoch, and the ids say which rows were taken."""
    root, first = tmp_path_factory.mktemp("data"), 0
    for index, rows in enumerate(sizes):
        table = pa.table({"row": np.arange(first, first + rows), "is_click": np.zeros(rows)})
        pq.write_table(table, root / f"{index}.parquet", row_group_size=row_group)
        first += rows
    data = {"root": str(root), "train": ["*.parquet"], "shuffle_buffer": buffer}
    seen: list[int] = []
    position, last = Position(), len(worlds) - 1
    for number, (ranks, batch_size, steps, shuffle, seed) in enumerate(worlds):
        job = JobConfig.model_validate(toy_tree() | ROW_JOB | {"data": data | {"batch_size": batch_size}})
        loaders = [loader_of(job, rank, ranks, shuffle=shuffle, seed=seed) for rank in range(ranks)]
        left = loaders[0].steps_left(position)
        taken = left if number == last else min(steps, left)
        for loader in loaders:
            assert loader.steps_left(position) == left
            batches = loader.epoch(position)
            for batch, _ in zip(batches, range(taken), strict=False):
                seen += batch.sparse["bags"].values().tolist()
                assert batch.sparse["bags"].values().numel() == batch.row_mask.sum()
            batches.close()
        position = loaders[0].after(position, taken) if taken else position
        if position.epoch:
            break
    assert position == Position(1)
    assert sorted(seen) == list(range(sum(sizes)))


def test_other_settings_begin_a_new_phase_and_the_same_go_on(tmp_path: Path) -> None:
    write_toy(tmp_path)
    one = shuffled(tmp_path)
    position = one.after(Position(), 2)
    assert len(one.after(position).phases) == 1
    other = loader_of(toy_job(tmp_path), 1, 3, shuffle="rows", seed=3)
    moved = other.after(position)
    assert [phase.ranks for phase in moved.phases] == [1, 3]
    assert other.steps_left(position) == -(-(557 - 128) // 3 // 64)
    assert one.after(Position(0, (replace(position.phases[0], steps=0),))).phases[0].steps == 1


def test_leaving_early_ends_the_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    batches = shuffled(write_toy(tmp_path)).epoch()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_an_error_on_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    write_toy(tmp_path)
    table = toy_table(80, seed=5)
    table = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(np.full(80, 1000)))
    pq.write_table(table, tmp_path / "train" / "part-9.parquet")
    with pytest.raises(DataError, match=r"part-9\.parquet: row group 0, row 0: column 'item_id' holds id 1000"):
        list(shuffled(tmp_path).epoch())


def test_a_rank_without_rows_takes_its_steps(tmp_path: Path) -> None:
    write_toy(tmp_path, train=(3,))
    loaders = [loader_of(toy_job(tmp_path), rank, 5) for rank in range(5)]
    sizes = [[batch.row_mask.sum().item() for batch in loader.epoch()] for loader in loaders]
    assert sizes == [[0], [1], [0], [1], [1]]


def test_the_loaders_thread_takes_one_core_and_leaves_the_others_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy(tmp_path)
    loader = loader_of(toy_job(tmp_path))
    seen: list[int] = []
    batch = loader.batch
    monkeypatch.setattr(loader, "batch", lambda *of: seen.append(torch.get_num_threads()) or batch(*of))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        batches = loader.epoch()
        next(batches)
        started = threading.Thread(target=lambda: seen.append(-torch.get_num_threads()))
        started.start()
        started.join()
        assert torch.get_num_threads() == 3
        batches.close()
        assert set(seen) == {1, -3}
    finally:
        torch.set_num_threads(before)


def test_batches_are_made_before_anybody_asks_and_closing_ends_it(tmp_path: Path) -> None:
    write_toy(tmp_path)
    loader = loader_of(toy_job(tmp_path, data={"prefetch": 2}))
    before = threading.active_count()
    batches = loader.epoch()
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    assert list(batches) == []
    left = loader.epoch()
    thread = left._thread
    del left
    thread.join(timeout=20)
    assert not thread.is_alive()


# ---- what is broken


def damaged(path: Path) -> None:
    """The first row group's item ids."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    start = next(one.dictionary_page_offset for one in columns if one.path_in_schema == "item_id")
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_price(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["price"]), path)


def bad_value(path: Path) -> None:
    table = pq.read_table(path)
    ids = table["item_id"].to_numpy().copy()
    ids[5] = -3
    table = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(ids))
    pq.write_table(table, path, row_group_size=70)


@pytest.mark.parametrize(
    ("spoil", "on_error", "left_out", "counted", "said"),
    [
        (damaged, "skip_row", 70, 70, "part-0.parquet: row group 0 cannot be read"),
        (damaged, "skip_file", 70, 70, "part-0.parquet: row group 0 cannot be read"),
        (truncated, "skip_row", 300, 1, "part-0.parquet: not a readable Parquet file"),  # its rows are not known
        (truncated, "skip_file", 300, 1, "part-0.parquet: not a readable Parquet file"),
        (without_price, "skip_row", 300, 300, "part-0.parquet: no column 'price'"),
        (without_price, "skip_file", 300, 300, "part-0.parquet: no column 'price'"),
        (bad_value, "skip_row", 1, 1, "part-0.parquet: row group 0, row 5: column 'item_id' holds id -3"),
        (bad_value, "skip_file", 70, 70, "part-0.parquet: row group 0, row 5: column 'item_id' holds id -3"),
    ],
)
def test_what_is_broken_is_left_out_counted_and_said_once(
    tmp_path: Path,
    spoil: Callable[[Path], None],
    on_error: str,
    left_out: int,
    counted: int,
    said: str,
    logged: list[str],
) -> None:
    spoil(write_toy(tmp_path) / "train" / "part-0.parquet")
    with pytest.raises(DataError, match=said):
        list(loader_of(toy_job(tmp_path)).epoch())
    logged.clear()
    loader = loader_of(toy_job(tmp_path, data={"on_error": on_error}), shuffle="rows")
    for _ in range(2):
        batches = list(loader.epoch())
        assert sum(batch.row_mask.sum().item() for batch in batches) == 557 - left_out
    assert len(logged) == 1
    assert said in logged[0]
    weightless = torch.cat([batch.row_mask for batch in batches]) == 0
    assert not torch.cat([batch.dense for batch in batches])[weightless].any()
    for part in ("targets", "in_space", "entire_space", "sample_weights"):
        assert not torch.cat([getattr(batch, part) for batch in batches])[weightless].any()
    assert all(batch.ids()[key].lengths()[batch.row_mask == 0].sum() == 0 for batch in batches for key in ["item_id"])
    assert loader.skipped.rows == counted
    job = toy_job(tmp_path, data={"on_error": on_error, "max_skipped": counted - 1})
    with pytest.raises(DataError, match=rf"{counted} rows were left out, data\.max_skipped allows.*{said}"):
        list(loader_of(job).epoch())
    list(loader_of(toy_job(tmp_path, data={"on_error": on_error, "max_skipped": counted})).epoch())


@pytest.mark.parametrize(("buffer", "ranks"), [(7, 1), (100, 2), (1000, 3)])
def test_a_row_group_is_left_out_whole_however_it_is_cut(tmp_path: Path, buffer: int, ranks: int) -> None:
    bad_value(write_toy(tmp_path) / "train" / "part-0.parquet")
    job = toy_job(tmp_path, data={"on_error": "skip_file", "shuffle_buffer": buffer})
    loaders = [loader_of(job, rank, ranks, shuffle="rows") for rank in range(ranks)]
    assert sum(batch.row_mask.sum().item() for one in loaders for batch in one.epoch()) == 557 - 70
    assert sum(one.skipped.rows for one in loaders) == 70


def test_every_rank_bears_its_share_of_whole_files(tmp_path: Path) -> None:
    without_price(write_toy(tmp_path) / "train" / "part-0.parquet")
    job = toy_job(tmp_path, data={"on_error": "skip_row", "max_skipped": 100})
    assert [loader_of(job, rank, 3).skipped.rows for rank in range(3)] == [100] * 3
    with pytest.raises(DataError, match="150 rows were left out"):
        loader_of(job, 0, 2)


def test_every_column_at_fault_is_said_once(tmp_path: Path, logged: list[str]) -> None:
    path = write_toy(tmp_path, train=(100,)) / "train" / "part-0.parquet"
    table = pq.read_table(path)
    for column, row, value in (
        ("item_id", 3, 999),
        ("item_id", 9, -1),
        ("price", 4, np.inf),
        ("watch_ratio", 5, np.inf),
    ):
        values = table[column].to_numpy().copy()
        values[row] = value
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(table, path)
    loader = loader_of(toy_job(tmp_path, data={"on_error": "skip_row"}))
    assert sum(batch.row_mask.sum().item() for batch in loader.epoch()) == 96
    assert [line.split("column ")[1].split(";")[0] for line in sorted(logged)] == [
        "'item_id' holds id 999, table 'item' has 40 rows",
        "'price' holds inf",
        "'watch_ratio' holds inf",
    ]


def test_a_file_that_changes_is_said(tmp_path: Path) -> None:
    write_toy(tmp_path)
    loader = loader_of(toy_job(tmp_path))
    list(loader.epoch())
    path = tmp_path / "train" / "part-1.parquet"
    pq.write_table(pq.read_table(path).slice(10), path)
    with pytest.raises(DataError, match=r"part-1\.parquet: has changed since the job began"):
        list(loader.epoch())


def test_a_file_that_is_written_again_is_said_whatever_its_size(tmp_path: Path) -> None:
    write_toy(tmp_path)
    loader = loader_of(toy_job(tmp_path))
    path = tmp_path / "train" / "part-1.parquet"
    written = path.stat().st_mtime_ns
    os.utime(path, ns=(written, written + 1))
    with pytest.raises(DataError, match=r"part-1\.parquet: has changed since the job began"):
        list(loader.epoch())
