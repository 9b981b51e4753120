"""Tables and data frames as data."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mtlrec
from mtlrec.api.tables import to_arrow, with_data, write_tables
from mtlrec.errors import ConfigError, DataError
from mtlrec.run_folder import RunFolder
from tests.support.toy import loader_of, toy_job, toy_table


def test_split_by_time_keeps_the_order() -> None:
    table = pa.table({"time": np.random.default_rng(0).permutation(100), "x": range(100)})
    parts = mtlrec.split(table, valid=0.2, test=0.1, by="time")
    assert [len(part) for part in parts.values()] == [70, 20, 10]
    assert pa.concat_tables(parts.values())["time"].to_pylist() == list(range(100))


def test_split_at_random_deals_every_row_once() -> None:
    table = pa.table({"x": range(101)})
    parts = mtlrec.split(table, seed=3)
    assert list(parts) == ["train", "valid", "test"]
    dealt = [value for part in parts.values() for value in part["x"].to_pylist()]
    assert sorted(dealt) == list(range(101))
    assert dealt != sorted(dealt)
    assert parts == mtlrec.split(table, seed=3)
    assert parts != mtlrec.split(table, seed=4)


def test_split_says_what_is_wrong() -> None:
    table = pa.table({"x": range(10)})
    with pytest.raises(ConfigError, match="leave some for train"):
        mtlrec.split(table, valid=0.5, test=0.5)
    with pytest.raises(DataError, match="by=day: no such column; columns are x"):
        mtlrec.split(table, by="day")


def test_whatever_exports_arrow_is_a_table() -> None:
    table = toy_table(5)
    assert to_arrow(table.to_reader()) == table


def test_a_pandas_index_is_no_column() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [3, 1, 2]}).sort_values("x")
    assert to_arrow(frame).to_pydict() == {"x": [1, 2, 3]}
    with pytest.raises(DataError, match="cannot become an Arrow table"):
        to_arrow(pandas.DataFrame({"x": [1, "a", None]}, dtype=object))


def test_tables_are_written_below_the_run_and_paths_are_not(tmp_path: Path) -> None:
    data = {"train": toy_table(20), "valid": tmp_path / "[valid].parquet"}
    pq.write_table(toy_table(10), data["valid"])
    run = RunFolder(tmp_path / "run[1]")
    job = with_data(toy_job(), data, run)
    write_tables(data, run)
    assert [path.name for path in run.data.iterdir()] == ["train"]
    assert pq.read_table(run.data / "train" / "part-0.parquet") == data["train"]
    assert job.data.test == []
    assert loader_of(job).dataset.rows == 20
    assert loader_of(job, split="valid").dataset.rows == 10


def test_inspect_proposes_a_job_for_a_table() -> None:
    result = mtlrec.inspect(toy_table(500), "toys")
    assert result.job.name == "toys"
    assert [task.name for task in result.job.tasks] == ["click", "buy", "like", "shown_like"]
    assert result.job.data.train == ["train/*.parquet"]
    assert result.report.rows == 500
    assert "user_id" in str(result)
    with pytest.raises(ConfigError):
        str(mtlrec.inspect(pa.table({"x": range(5)})).job)


def test_other_rows_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    """A run or a comparison that continues on them would mix what it learned from two tables."""
    run, rows, others = RunFolder(tmp_path), {"train": toy_table(9)}, {"train": toy_table(9, seed=1)}
    write_tables(rows, run)
    write_tables(rows, run)
    with pytest.raises(ConfigError, match=r"the rows of train are not those in .*part-0\.parquet"):
        write_tables(others, run)
    write_tables(others, run, overwrite=True)
    assert pq.read_table(tmp_path / "data" / "train").equals(others["train"])


def test_data_that_is_overwritten_comes_back_until_the_new_job_works(tmp_path: Path) -> None:
    run, rows, others = RunFolder(tmp_path), {"train": toy_table(9)}, {"train": toy_table(9, seed=1)}
    write_tables(rows, run)
    write_tables(others, run, overwrite=True)
    write_tables(others, run, overwrite=True)  # the first launch was killed before it knew
    run.restore_data()
    assert pq.read_table(tmp_path / "data" / "train").equals(rows["train"])
    write_tables(others, run, overwrite=True)
    run.clear()
    run.restore_data()
    assert pq.read_table(tmp_path / "data" / "train").equals(others["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
