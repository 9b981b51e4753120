"""Balancing in the sharded pipeline: as in one process, and with one update of the tables per step."""

import importlib.util
from typing import Any

import pytest
import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import process_group
from mtlrec.models.build import build_train_module
from mtlrec.training.optim import Optimizers
from mtlrec.training.sharded import build_sharded
from tests.distributed.test_sharding import batches, fill
from tests.support.ranks import run_ranks
from tests.support.toy import toy_job

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 10
PROFILED_STEPS = 2
"""The last ones. A profiler takes longer than a step."""
METHODS = ["static", "uncertainty", "dwa"]
METHODS += ["upgrad", "aligned", "cagrad", "mgda"] if importlib.util.find_spec("torchjd") else []
"""pcgrad draws its order on rank 0, from that rank's own state: see tests/unit/losses/test_balancing.py."""


def job_with(method: str) -> JobConfig:
    weighting = {"kind": method} | ({"every": 3} if method == "dwa" else {})
    return toy_job(
        tables={"user": {"rows": 50, "dim": 16}, "item": {"rows": 40, "dim": 16}},
        sharding={"constraints": {table: {"types": ["row_wise"]} for table in ("user", "item")}},
        loss={"weighting": weighting},
        optim={"sparse": {"kind": "adagrad", "lr": 0.1}, "dense": {"kind": "adam", "lr": 0.01}},
    )


def train_alone(job: JobConfig) -> tuple[dict[str, torch.Tensor], list[list[float]], list[list[float]]]:
    torch.manual_seed(0)
    module = build_train_module(job, torch.device("cpu"))
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    sparse = torch.optim.Adagrad(module.model.sparse_arch.parameters(), lr=0.1, eps=1e-8)
    dense = [*module.model.over_arch.parameters(), *module.loss.parameters()]
    adam = torch.optim.Adam(dense, lr=0.01)
    losses, coefficients = [], []
    for batch in batches(job, 0, 1)[:STEPS]:
        sparse.zero_grad()
        adam.zero_grad()
        loss, output = module(batch)
        loss.backward()
        sparse.step()
        adam.step()
        losses.append(output.report.losses.tolist())
        coefficients.append(output.report.coefficients.tolist())
    return start, losses, coefficients


def train_on_a_rank(starts: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    results = {}
    with process_group("cpu", 60) as ranks:
        for method, start in starts.items():
            job = job_with(method)
            model = build_sharded(job, ranks)
            fill(model.state(), start)
            optimizers = Optimizers(model.module, job, STEPS)
            pipeline: Any = TrainPipelineSparseDist(model.module, optimizers.combined, ranks.device)
            stream = iter(batches(job, ranks.rank, ranks.world_size)[:STEPS])
            reports = []
            profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            for step in range(STEPS):
                if step == STEPS - PROFILED_STEPS:
                    profile.start()
                optimizers.set_learning_rates(step)
                reports.append(pipeline.progress(stream).report)
            profile.stop()
            updates = sum("split_embedding_backward" in event.name for event in profile.events())
            losses = [report.losses.tolist() for report in reports]
            results[method] = (losses, [report.coefficients.tolist() for report in reports], updates)
    return results


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {method: train_alone(job_with(method)) for method in METHODS}


@pytest.fixture(scope="module")
def on_two_ranks(alone: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(2, train_on_a_rank, {method: start for method, (start, *_) in alone.items()})


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_weigh_and_learn_as_one_process_does(method: str, alone: Any, on_two_ranks: Any) -> None:
    _, losses, coefficients = alone[method]
    for rank in on_two_ranks:
        torch.testing.assert_close(torch.tensor(rank[method][0]), torch.tensor(losses), rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(rank[method][1]), torch.tensor(coefficients), rtol=1e-3, atol=1e-3)
    if method != "static":
        assert torch.tensor(coefficients).std(dim=0).max() > 1e-3, "the weights stood still, so equality says little"


@pytest.mark.parametrize("method", METHODS)
def test_tables_are_updated_once_a_step(method: str, on_two_ranks: Any) -> None:
    """FBGEMM steps the tables inside their backward: a pass per task would step them as often."""
    for rank in on_two_ranks:
        assert rank[method][2] == rank["static"][2]
        assert rank["static"][2] >= PROFILED_STEPS
