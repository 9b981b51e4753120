"""What a step takes from the job: its learning rate, its tasks' weights, how far its gradients may go."""

from typing import Any
from unittest import TestCase

import pytest
import torch

from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import process_group
from mtlrec.training.optim import learning_rate
from mtlrec.training.step import TrainingStep
from tests.support.toy import ITEMS, collated, toy_job, toy_table, toy_tree

STEPS, STEPS_PER_EPOCH = 6, 2


def train(**sections: Any) -> list[dict[str, Any]]:
    """Learning rates, tasks' weights and the dense parameters' change of every step."""
    job = toy_job(**sections)
    taken: list[dict[str, Any]] = []
    with process_group("cpu", 60) as ranks:
        take_step = TrainingStep(job, ranks, STEPS, STEPS_PER_EPOCH)
        dense = take_step.optimizers.dense
        batches = iter([collated(toy_table(64, step), job=job) for step in range(STEPS)])
        for step in range(STEPS):
            before = [parameter.detach().clone() for parameter in dense.params.values()]
            report = take_step(batches, step, step // STEPS_PER_EPOCH).report
            change = [after.detach() - old for after, old in zip(dense.params.values(), before, strict=True)]
            rate = dense.param_groups[0]["lr"]
            taken.append(
                {"rate": rate, "weights": report.coefficients, "change": torch.cat([c.flatten() for c in change])}
            )
    return taken


def test_all_collections_are_pipelined() -> None:
    """TorchRec must see that their inputs come straight from the batch; it looks up what it does not see in turn."""
    tree = toy_tree()
    tree["tables"]["recent"] = {"rows": ITEMS, "dim": 8}
    tree["features"]["sparse"][2] |= {"table": "recent", "weights": "recent_weights"}
    job = JobConfig.model_validate(tree)
    with process_group("cpu", 60) as ranks:
        take_step = TrainingStep(job, ranks, STEPS, STEPS_PER_EPOCH)
        with TestCase().assertNoLogs("torchrec", "WARNING"):
            take_step(iter([collated(toy_table(64, step), job=job) for step in range(2)]), 0)
        collections = take_step.model.network.sparse_arch.collections
        pipelined = {id(module) for module in take_step.pipeline._pipelined_modules}
    assert list(collections) == ["bags", "weighted_bags"]
    assert pipelined == {id(collection) for collection in collections.values()}


def test_the_first_step_has_the_first_learning_rate() -> None:
    taken = train(optim={"dense": {"lr": 0.02, "warmup_steps": 2, "decay": "linear"}})
    schedule = toy_job(optim={"dense": {"lr": 0.02, "warmup_steps": 2, "decay": "linear"}}).optim.dense
    assert [one["rate"] for one in taken] == [learning_rate(schedule, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("clip_norm", [1e-3, 1e-2])
def test_no_dense_gradient_is_longer_than_clip_norm(clip_norm: float) -> None:
    """By plain SGD at a rate of 1, which moves the parameters by the gradient itself."""
    taken = train(optim={"dense": {"kind": "sgd", "lr": 1.0, "clip_norm": clip_norm}})
    assert [float(one["change"].norm()) for one in taken] == pytest.approx([clip_norm] * STEPS, rel=1e-3)


@pytest.mark.parametrize(("unit", "times"), [("epoch", [0, 0, 1, 1, 2, 2]), ("step", [0, 1, 2, 3, 4, 5])])
def test_weights_decay_by_epochs_or_steps(unit: str, times: list[int]) -> None:
    weighting = {"kind": "decay", "rate": {"like": 0.5}, "unit": unit}
    taken = train(loss={"weighting": weighting})
    like = [float(one["weights"][2]) for one in taken]
    assert like == pytest.approx([0.5 * 0.5**time for time in times])
    assert {float(one["weights"][0]) for one in taken} == {1.0}


@pytest.mark.parametrize(("every", "first"), [(None, 2 * STEPS_PER_EPOCH), (1, 2)])
def test_dynamic_weight_average_begins_after_two_windows(every: int | None, first: int) -> None:
    """Windows are epochs unless the job says how many steps."""
    taken = train(loss={"weighting": {"kind": "dwa", "every": every}}, tasks=toy_tasks())
    equal = [bool((one["weights"] == 1.0).all()) for one in taken]
    assert equal == [True] * first + [False] * (STEPS - first)


def toy_tasks() -> list[dict[str, Any]]:
    """Of equal weights."""
    return [{"name": "click", "label": "is_click"}, {"name": "buy", "label": "is_buy", "given": "click"}]
