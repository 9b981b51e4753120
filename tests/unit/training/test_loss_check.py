"""Losses that are not finite end a training, at once or a step later, and before the state is used elsewhere."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtlrec.batch import Batch
from mtlrec.distributed.process_group import process_group
from mtlrec.errors import NonFiniteError
from mtlrec.training.loading import loader_of
from mtlrec.training.loss_check import LossCheck
from mtlrec.training.saving import Saving
from mtlrec.training.step import TrainingStep
from mtlrec.training.trainer import Callback, Trainer
from tests.support.ranks import run_ranks
from tests.support.toy import collated, toy_job, toy_table, write_toy

BAD = 1
"""The batch, from 0, with a ratio that is not a number."""


def batches(bad: int = BAD) -> Iterator[Batch]:
    for number in range(5):
        table = toy_table(64, number).set_column(6, "is_click", pa.array([True] * 64))
        batch = collated(table, 64, toy_job())
        if number == bad:
            batch.targets[5, 3] = math.nan
        batch.origin = f"part-{number}.parquet"
        yield batch


def test_the_step_itself_raises_where_nothing_is_waited_for() -> None:
    with process_group("cpu", 60) as ranks:
        take_step, stream = TrainingStep(toy_job(), ranks, 5, 5), batches()
        assert take_step.loss_check.lag == 0
        take_step(stream, 0)
        with pytest.raises(NonFiniteError, match=r"step 2: the loss of ratio .*; rows from part-1\.parquet"):
            take_step(stream, 1)


@pytest.mark.parametrize("lag", [1, 2])
def test_a_later_step_raises_and_names_the_one_it_was(lag: int) -> None:
    with process_group("cpu", 60) as ranks:
        take_step, stream = TrainingStep(toy_job(), ranks, 5, 5, lag=lag), batches()
        for step in range(BAD + lag):
            take_step(stream, step)
        with pytest.raises(NonFiniteError, match=r"step 2: the loss of .*ratio.*; rows from part-1\.parquet"):
            take_step(stream, BAD + lag)


def test_whoever_uses_the_state_learns_of_the_last_step() -> None:
    with process_group("cpu", 60) as ranks:
        take_step, stream = TrainingStep(toy_job(), ranks, 5, 5, lag=1), batches()
        take_step(stream, 0)
        take_step.loss_check.finish()
        take_step(stream, 1)
        with pytest.raises(NonFiniteError, match="step 2: the loss of ratio"):
            take_step.loss_check.finish()
        take_step.loss_check.finish()  # has nothing left to look at


def stopped_at(lag: int) -> str:
    """On a rank of two, of which the second alone has the bad rows."""
    with process_group("cpu", 60) as ranks:
        take_step = TrainingStep(toy_job(), ranks, 5, 5, lag=lag)
        stream = batches(BAD if ranks.rank == 1 else -1)
        for step in range(4):
            try:
                take_step(stream, step)
            except NonFiniteError as error:
                torch.distributed.barrier()
                return f"{step}: {error}"
    return "nothing"


@pytest.mark.distributed
@pytest.mark.parametrize("lag", [0, 1])
def test_all_ranks_stop_at_the_same_step(lag: int) -> None:
    first, second = run_ranks(2, stopped_at, lag)
    assert first == second
    assert first.startswith(f"{BAD + lag}: step 2: the loss of ")
    assert "rows from part-1.parquet" in first


class Ends(Callback):
    ended = False

    def on_end(self, trainer: Trainer) -> None:
        self.ended = True


def test_nothing_is_saved_or_evaluated_of_a_last_step_that_is_not_finite(tmp_path: Path) -> None:
    """Where the check lags, as on CUDA: the last row of the last file has a ratio whose square is not float32."""
    root = write_toy(tmp_path / "data", train=(128,), valid=10, test=10)
    table = toy_table(64, seed=9)
    ratio = np.where(np.arange(64) == 63, 1e30, np.array(table["watch_ratio"]))
    for name, values in (("watch_ratio", ratio), ("is_click", np.ones(64, bool))):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, root / "train" / "part-9.parquet")
    job = toy_job(root, data={"shuffle": "none"}, train={"epochs": 1})
    for saves in (False, True):
        with process_group("cpu", 60) as ranks:
            ends, saving = Ends(), Saving(job, tmp_path / "run", ranks)
            trainer = Trainer(job, ranks, loader_of(job, "train", ranks), [ends, *([saving] if saves else [])])
            trainer._take_step.loss_check = LossCheck(job, ranks, lag=1)
            with pytest.raises(NonFiniteError, match=r"step 3: the loss of ratio is not finite; rows from .*part-9"):
                trainer.fit()
        assert not ends.ended
        assert not list((tmp_path / "run").glob("checkpoints/step_*"))
