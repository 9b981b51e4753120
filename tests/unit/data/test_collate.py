"""Columns to tensors, compared with a plain loop over Python rows."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtlrec.batch import NO_GROUP
from mtlrec.data.collate import collate
from mtlrec.data.features.columns import Columns
from mtlrec.errors import DataError
from tests.support.toy import collated, rows_of, toy_job, toy_table


def changed(column: str, value: Any) -> pa.Table:
    table = toy_table(4)
    return table.set_column(table.column_names.index(column), column, value)


@pytest.mark.parametrize("start", [0, 13])
def test_columns_become_tensors(start: int) -> None:
    table = pa.concat_tables([toy_table(30), toy_table(20, seed=1)]).slice(start)
    batch, rows = collated(table, 55), table.to_pylist()
    for index, row in enumerate(rows):
        age = 0.0 if row["age"] is None else (row["age"] - 40) / 10
        assert batch.dense[index].tolist() == pytest.approx([age, math.log1p(row["price"])], abs=1e-6)
        assert batch.row_mask[index] == 1
        in_space = [True, True, row["is_like"] is not None and row["shown_like"] == 1, row["is_click"]]
        assert batch.in_space[index].tolist() == batch.entire_space[index].tolist() == in_space
        assert batch.sample_weights[index].tolist() == [1, 1, 1, 1]
        for task, name in enumerate(["is_click", "is_buy", "is_like", "watch_ratio"]):
            assert batch.targets[index, task].item() == pytest.approx(float(row[name] or 0))
    ids = batch.ids()
    lists = {name: [one.tolist() for one in jagged.to_dense()[: len(rows)]] for name, jagged in ids.items()}
    assert lists["user_id"] == [[] if row["user_id"] is None else [row["user_id"]] for row in rows]
    assert lists["item_id"] == [[row["item_id"]] for row in rows]
    assert lists["recent_items"] == [row["recent_items"][-5:] for row in rows]
    padding = slice(len(rows), 55)
    assert not batch.row_mask[padding].any()
    for part in (batch.targets, batch.in_space, batch.entire_space, batch.sample_weights):
        assert not part[padding].any()
    assert not batch.dense[padding].any()
    assert all(ids[name].lengths()[padding].sum() == 0 for name in ids)


def test_no_rows_at_all_is_padding_only() -> None:
    batch = collated(toy_table(5).slice(0, 0), 3)
    assert batch.row_mask.tolist() == [0, 0, 0]
    assert batch.sparse["bags"].values().numel() == 0
    assert batch.sparse["bags"].values().dtype == torch.int64


def test_null_and_nan_labels_are_unknown() -> None:
    tasks = [{"name": "ratio", "kind": "regression", "label": "watch_ratio"}]
    batch = collated(changed("watch_ratio", pa.array([1.0, None, math.nan, 2.0])), job=toy_job(tasks=tasks))
    assert batch.in_space[:, 0].tolist() == [True, False, False, True]
    assert batch.targets[:, 0].tolist() == [1, 0, 0, 2]


def test_rows_to_predict_have_no_labels() -> None:
    job = toy_job()
    columns = Columns.of(job, with_labels=False)
    batch = columns.batch(columns.block(rows_of(toy_table(6).drop_columns(["is_click", "shown_like"]))))
    for part in (batch.targets, batch.in_space, batch.entire_space, batch.sample_weights):
        assert part.shape == (6, 0)
    assert batch.label_faults.shape == (2, 0)


def test_faults_are_counted_in_each_batch() -> None:
    """Two rows bought without a click, and a click of which it is not known whether they bought."""
    table = toy_table(6)
    for name, values in (("is_click", [0, 0, 1, 1, 1, 0]), ("is_buy", [1, 0, None, 1, 0, 1])):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int8()))
    job = toy_job()
    block = Columns.of(job).block(rows_of(table))
    collections = job.features.collections
    faults = [collate([(block, *cut)], 4, collections).label_faults for cut in ((0, 3), (3, 6))]
    assert [one[:, 1].tolist() for one in faults] == [[1, 1], [1, 0]]
    both = collate([(block, 0, 2), (block, 4, 6)], 4, collections)
    assert both.label_faults.tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]


def test_null_lists_are_empty() -> None:
    batch = collated(changed("recent_items", pa.array([[1, 2], None, [], [3]], pa.list_(pa.int64()))))
    assert batch.ids()["recent_items"].lengths().tolist() == [2, 0, 0, 1]
    assert batch.ids()["recent_items"].values().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item_id", pa.array([0, 1, 40, 2]), "row 2: column 'item_id' holds id 40, table 'item' has 40 rows; raise"),
        ("item_id", pa.array([0, 1, -1, 2]), "row 2: column 'item_id' holds id -1.*not negative"),
        ("watch_ratio", pa.array([0, 1, 1e39, 2]), "row 2: column 'watch_ratio' holds 1e\\+39; a label is a finite"),
        (
            "item_id",
            pa.array([2**64 - 1, 0, 1, 2], pa.uint64()),
            "row 0: column 'item_id' holds id 18446744073709551615",
        ),
        ("recent_items", pa.array([[1], [3, 99], [], []]), "row 1: column 'recent_items' holds id 99"),
        ("recent_items", pa.array([[1], [None], [], []]), "row 1: column 'recent_items' holds a null in a list"),
        ("price", pa.array([1.0, -2.0, 3.0, 4.0]), "row 1: column 'price' holds -2; log1p takes values >= 0"),
        ("price", pa.array([1.0, math.inf, 3.0, 4.0]), "row 1: column 'price' holds inf; a dense feature is finite"),
        (
            "is_click",
            pa.array([0.0, 1.0, 2.0, 0.0]),
            "row 2: column 'is_click' holds 2; a binary label, .* 0, 1 or null",
        ),
        ("shown_like", pa.array([0, 1, 3, 0]), "row 2: column 'shown_like' holds 3"),
        ("watch_ratio", pa.array([0, 1, 3, math.inf]), "row 3: column 'watch_ratio' holds inf; a label is a finite"),
    ],
)
def test_bad_values_name_file_row_column_and_value(column: str, value: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=r"here\.parquet: row group 0, " + message):
        collated(changed(column, value))


@pytest.mark.parametrize(
    ("values", "same"),
    [
        (pa.array([3, 1, 3, None], pa.int64()), [(0, 2)]),
        (pa.array([3, 1, 3, 1], pa.int8()), [(0, 2), (1, 3)]),
        (pa.array([3, 1, 3, None], pa.uint64()), [(0, 2)]),
        (pa.array(["a", "b", "a", None]), [(0, 2)]),
        (pa.array(["a", "", None, ""], pa.large_string()), [(1, 3)]),
        (pa.array([None] * 4, pa.string()), [(0, 1), (1, 2), (2, 3)]),
        (pa.array(["a", "b", "a", None]).dictionary_encode(), [(0, 2)]),
    ],
    ids=str,
)
def test_equal_values_are_one_group_whatever_their_type(values: pa.Array, same: list[tuple[int, int]]) -> None:
    job = toy_job(metrics={"group_by": "who"})
    table = toy_table(4).append_column("who", values)
    groups = collated(table, 6, job).group_ids
    assert groups is not None
    assert groups.dtype == torch.int64
    assert len(groups) == 6
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4) if groups[a] == groups[b]]
    assert set(same) <= set(pairs)
    if len(same) < 3:
        assert pairs == same
    swapped = collated(table.slice(2), 2, job).group_ids
    assert swapped is not None
    assert swapped.tolist() == groups[2:4].tolist()  # the same in every batch and on every rank
    assert collated(table, 6).group_ids is None


def test_negative_weights_are_refused() -> None:
    tasks = [{"name": "click", "label": "is_click", "sample_weight": "importance"}]
    table = changed("importance", pa.array([1.0, None, -0.5, 2.0]))
    with pytest.raises(DataError, match=r"column 'importance' holds -0\.5; .* is >= 0 or null"):
        collated(table, job=toy_job(tasks=tasks))


def test_decimals_and_booleans_are_numbers() -> None:
    decimals = pa.array([1, 2, 3, 4]).cast(pa.decimal128(21, 2))
    batch = collated(changed("price", decimals))
    assert batch.dense[:, 1].tolist() == pytest.approx(np.log1p([1, 2, 3, 4]).tolist())


@pytest.mark.parametrize("values", [pa.array([0, None, 1]), pa.array(["", None, "a"])])
def test_an_unknown_group_is_no_value_s(values: pa.Array) -> None:
    groups = collated(toy_table(3).append_column("who", values), job=toy_job(metrics={"group_by": "who"})).group_ids
    assert groups is not None
    assert (groups == NO_GROUP).tolist() == [False, True, False]


def test_a_batch_of_several_cuts_is_that_of_its_rows_together() -> None:
    """The last batch of a rank: what two blocks have left, then padding."""
    job, table = toy_job(), toy_table(30)
    block = Columns.of(job).block(rows_of(table))
    found = collate([(block, 2, 5), (block, 20, 24)], 10, job.features.collections)
    expected = collated(table.take([2, 3, 4, 20, 21, 22, 23]), 10, job)
    for part in ("dense", "targets", "in_space", "entire_space", "sample_weights", "row_mask"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part
    for name, ids in expected.ids().items():
        assert torch.equal(found.ids()[name].values(), ids.values())
        assert torch.equal(found.ids()[name].lengths(), ids.lengths())
    assert found.row_mask.tolist() == [1.0] * 7 + [0.0] * 3
