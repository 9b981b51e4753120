"""Batches without data: shapes and values that a job's own batches could have."""

import torch

from mtlrec.benchmark.random_batches import random_batches
from mtlrec.config import JobConfig


def job() -> JobConfig:
    return JobConfig.model_validate(
        {
            "name": "random",
            "data": {"train": ["x.parquet"], "batch_size": 64},
            "tables": {"item": {"rows": 50, "dim": 4}, "user": {"rows": 9, "dim": 4}},
            "features": {
                "dense": [{"name": "age"}],
                "sparse": [
                    {"name": "user", "table": "user"},
                    {"name": "recent", "table": "item", "pooling": "mean", "max_length": 3, "weights": "recent_w"},
                ],
            },
            "tasks": [
                {"name": "click", "label": "click", "space": "shown"},
                {"name": "seconds", "label": "seconds", "kind": "watch_time"},
            ],
            "model": {"fusion": {"kind": "shared_bottom", "expert_hidden": [[8]]}},
        }
    )


def test_every_batch_is_one_of_the_job() -> None:
    made = random_batches(job(), count=5, seed=1)
    assert len(made) == 5
    for batch in made:
        assert batch.dense.shape == (64, 1)
        for part in (batch.targets, batch.in_space, batch.entire_space, batch.sample_weights):
            assert part.shape == (64, 2)
        assert batch.row_mask.tolist() == [1.0] * 64
        by_name = batch.ids()
        assert list(by_name) == ["user", "recent"]
        assert by_name["user"].lengths().tolist() == [1] * 64
        assert set(by_name["recent"].lengths().tolist()) == {0, 1, 2, 3}
        assert by_name["recent"].weights().shape == by_name["recent"].values().shape
        for name, rows in (("user", 9), ("recent", 50)):
            assert 0 <= int(by_name[name].values().min()) <= int(by_name[name].values().max()) < rows
        assert set(batch.targets[:, 0].tolist()) <= {0.0, 1.0}
        assert (batch.targets[:, 1] > 0).all()
        assert 0 < batch.in_space[:, 0].sum() < 32, "a tenth of the rows were shown"
        assert batch.in_space[:, 1].all()


def test_a_seed_gives_the_same_batches_again_and_another_gives_others() -> None:
    one, again, other = (random_batches(job(), 2, seed)[1].ids()["user"].values() for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
