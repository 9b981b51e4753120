"""A real step still has the events by whose names its time is split into stages."""

import pytest
import torch

from mtlrec.compat.profiler_events import AUTOGRAD_NODE, BACKWARD, INPUT, collective_of_event, stage_of_event
from mtlrec.distributed.process_group import process_group
from mtlrec.training.step import TrainingStep
from tests.support.toy import collated, toy_job, toy_table

NAMES = {
    "host to device": ["## copy_batch_to_gpu"],
    "sparse forward": ["## start_sparse_data_dist", "## wait_sparse_data_dist", "[lookup]", "[splits_dist]"],
    "all-to-all": ["## all2all_data", "[output_dist]", "## PooledEmbeddingsAwaitable wait()", "c10d::alltoall_base_"],
    "dense forward": ["## forward"],
    "backward": [BACKWARD, AUTOGRAD_NODE],
    "sparse update": ["torch::autograd::CppNode<Split"],
    "all-reduce": ["c10d::allreduce_"],
    "dense optimizer": ["## optimizer", "## zero_grad", "Optimizer.step#"],
}
"""What the events' names begin with, by stage."""


@pytest.fixture(scope="module")
def names() -> set[str]:
    job = toy_job()
    with process_group("cpu") as ranks, torch.profiler.profile() as profile:
        take_step = TrainingStep(job, ranks, total_steps=3, steps_per_epoch=3)
        batches = iter([collated(toy_table(64, seed), 64, job) for seed in range(3)])
        for step in range(3):
            take_step(batches, step)
    return {event.name for event in profile.events() or []}


@pytest.mark.parametrize("stage", NAMES)
def test_the_events_of_a_stage_are_there(stage: str, names: set[str]) -> None:
    for start in NAMES[stage]:
        found = [name for name in names if name.startswith(start) and stage_of_event(name) == stage]
        assert found, f"compat/profiler_events.py must follow: upstream has no event {start!r} any more"


def test_collectives_are_told_by_name(names: set[str]) -> None:
    assert "c10d::allreduce_".removeprefix("c10d::") in INPUT
    assert [collective_of_event(f"c10d::{name}") for name in ("_allgather_base_", "alltoall_base_", "broadcast_")] == [
        "allgather",
        "alltoall",
        "broadcast",
    ]
