"""The loader's thread: order, errors, an early end."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtlrec.data.collate import Collator
from mtlrec.data.loader import Loader
from mtlrec.data.parquet import DataError
from tests.toy import toy_job, toy_table, write_toy


def loader(root: Path, rank: int = 0, world_size: int = 1) -> Loader:
    job = toy_job(root)
    return Loader(job.data, job.data.train, Collator.of(job), rank, world_size, shuffle="rows", seed=3)


def test_an_epoch_can_be_entered_anywhere(tmp_path: Path) -> None:
    ranks = [loader(write_toy(tmp_path), rank, 2) for rank in range(2)]
    assert ranks[0].steps_per_epoch == ranks[1].steps_per_epoch == 5
    for one in ranks:
        whole = list(one.epoch(epoch=1))
        assert len(whole) == 5
        for start in (0, 2, 5):
            rest = list(one.epoch(epoch=1, start_step=start))
            assert len(rest) == 5 - start
            assert all(torch.equal(a.dense, b.dense) for a, b in zip(rest, whole[start:], strict=True))
    weights = sum(float(batch.weights.sum()) for one in ranks for batch in one.epoch())
    assert weights == 557


def test_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    batches = loader(write_toy(tmp_path)).epoch()
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_on_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    write_toy(tmp_path)
    table = toy_table(80, seed=5)
    table = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(np.full(80, 1000)))
    pq.write_table(table, tmp_path / "train" / "part-9.parquet")
    with pytest.raises(DataError, match=r"part-9\.parquet.*holds id 1000"):
        list(loader(tmp_path).epoch())
