"""Labels fit the tensors they describe, and a model with a task or a feature more computes what the old one did."""

import copy
from typing import Any

import pytest
import torch

from mtlrec.checkpoints.warm_start import transplant
from mtlrec.config import JobConfig
from mtlrec.models.axes import parameter_axes
from mtlrec.models.build import build_model
from tests.support.toy import FUSIONS, toy_tree

BOTTOMS: dict[str, dict[str, Any]] = {
    "concat": {"kind": "concat"},
    "concat_hidden": {"kind": "concat", "hidden": [12]},
    "dot": {"kind": "dot", "hidden": [12]},
    "dot_no_hidden": {"kind": "dot", "hidden": []},
    "cross": {"kind": "cross"},
    "cross_low_rank": {"kind": "cross", "rank": 3},
    "masknet": {"kind": "masknet", "block_dim": 12},
    "masknet_serial": {"kind": "masknet", "block_dim": 12, "mode": "serial", "hidden": [10]},
}
CASES = [(fusion, "concat") for fusion in FUSIONS] + [("adatt_sp", bottom) for bottom in BOTTOMS]


def job_of(fusion: str, bottom: str, more: bool, at: int | None = None) -> JobConfig:
    """The toy job; with `more`, one more task in the middle, one more dense and one more sparse feature in front.

    Asymmetric sharing gets its task at the end: what follows a new task reads it, and would have to be learned again.
    """
    tree = copy.deepcopy(toy_tree(model={"bottom": BOTTOMS[bottom], "fusion": FUSIONS[fusion]}))
    tree["tasks"] = tree["tasks"][:3]
    if isinstance(FUSIONS[fusion].get("num_task_experts"), list):
        tree["model"]["fusion"]["num_task_experts"] = [1, 9, 2, 1] if more else [1, 2, 1]
    if "task_groups" in FUSIONS[fusion]:
        tree["model"]["fusion"]["task_groups"] = [0, 0, 1, 0] if more else [0, 1, 0]
    if more:
        at = at or (3 if fusion == "asymmetric" else 1)
        tree["tasks"].insert(at, {"name": "share", "label": "is_share"})
        tree["features"]["dense"].insert(0, {"name": "clock"})
        tree["features"]["sparse"].insert(0, {"name": "category", "table": "item"})
    return JobConfig.model_validate(tree)


@pytest.mark.parametrize(("fusion", "bottom"), CASES)
@pytest.mark.parametrize("more", [False, True])
def test_labels_fit_the_saved_tensors(fusion: str, bottom: str, more: bool) -> None:
    job = job_of(fusion, bottom, more)
    model = build_model(job)
    axes = parameter_axes(model, job)
    saved = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("over_arch.")}
    assert axes.keys() == saved.keys()
    for name, tensor in saved.items():
        sizes = [size if labels is None else len(labels) for labels, size in zip(axes[name], tensor.shape, strict=True)]
        assert sizes == list(tensor.shape), name
        assert all(labels is None or len(set(labels)) == len(labels) for labels in axes[name]), name


@pytest.mark.parametrize(("fusion", "bottom"), CASES)
def test_the_grown_model_computes_what_the_old_one_did(fusion: str, bottom: str) -> None:
    """Once what stayed fresh is silenced: new columns and experts at zero, gates that never choose a new expert."""
    old_job, new_job = job_of(fusion, bottom, False), job_of(fusion, bottom, True)
    old, new = (build_model(job).over_arch.eval() for job in (old_job, new_job))
    old_axes = parameter_axes(build_model(old_job), old_job)
    new_axes = parameter_axes(build_model(new_job), new_job)
    old_state = old.state_dict()
    with torch.no_grad():
        for name, statistic in old.named_buffers():
            if "running" in name:
                statistic.uniform_(0.5, 1.5)
        for name, tensor in new.state_dict().items():
            is_gate_bias = "gates" in name and name.endswith("bias") and "selector" not in name
            tensor.fill_(-1e4 if is_gate_bias else 0)
            if name in old_state:
                full = f"over_arch.{name}"
                assert transplant(old_state[name], old_axes[full], tensor, new_axes[full]) > 0, name
        dense, embeddings = torch.randn(6, 2), [torch.randn(6, 8) for _ in range(3)]
        wanted = old.heads(old.fusion(old.bottom(dense, embeddings))).value
        more_dense = torch.cat([torch.zeros(6, 1), dense], 1)
        got = new.heads(new.fusion(new.bottom(more_dense, [torch.zeros(6, 8), *embeddings]))).value
    kept = [i for i, task in enumerate(new_job.tasks) if task.name != "share"]
    torch.testing.assert_close(got[:, kept], wanted, rtol=1e-5, atol=1e-6)


def test_a_task_put_before_others_gets_no_projection_of_theirs() -> None:
    jobs = job_of("asymmetric", "concat", False), job_of("asymmetric", "concat", True, at=1)
    old, new = (build_model(job) for job in jobs)
    old_axes, new_axes = (parameter_axes(model, job) for model, job in zip((old, new), jobs, strict=True))
    names = [name for name in old.state_dict() if "projections" in name]
    assert len(names) == 4
    for name in names:
        before, after = old.state_dict()[name], new.state_dict()[name]
        untouched = after.clone()
        assert transplant(before, old_axes[name], after, new_axes[name]) == 0, name
        assert torch.equal(after, untouched)
