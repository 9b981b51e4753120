"""An architecture at another's size: counted by hand where that is short, and within a twentieth everywhere."""

import pytest

from mtlrec import layers
from mtlrec.comparison.capacity import Capacity, capacity_of, matched, with_fusion
from mtlrec.config import JobConfig
from mtlrec.config.file import load_config

KINDS = list(layers.FUSIONS)


def test_capacity_by_hand() -> None:
    """Two floats and two embeddings of 4 into a shared layer of 5, two towers of 3."""
    job = JobConfig.model_validate(
        {
            "name": "by_hand",
            "tables": {"t": {"rows": 10**9, "dim": 4}},
            "features": {
                "dense": [{"name": "a"}, {"name": "b"}],
                "sparse": [{"name": "x", "table": "t"}, {"name": "y", "table": "t", "pooling": "mean"}],
            },
            "tasks": [{"name": "click", "label": "click"}, {"name": "like", "label": "like"}],
            "model": {
                "fusion": {"kind": "shared_bottom", "expert_hidden": [[5]]},
                "heads": {"kind": "independent", "tower_hidden": [3]},
            },
        }
    )
    multiplications = 10 * 5 + 2 * (5 * 3 + 3 * 1)
    biases = 5 + 2 * (3 + 1)
    assert capacity_of(job) == Capacity(parameters=multiplications + biases, flops=2 * multiplications)


@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_brought_to_the_size_of_another(kind: str, by: str) -> None:
    job = load_config("kuairand", [])
    target = capacity_of(job)
    found, capacity = matched(job, load_config("kuairand", [f"model.fusion.kind={kind}"]).model.fusion, target, by)  # type: ignore[arg-type]
    assert capacity == capacity_of(found)
    assert abs(getattr(capacity, by) / getattr(target, by) - 1) < 0.05
    assert found.model.fusion.kind == kind
    assert (found.tasks, found.tables, found.model.heads) == (job.tasks, job.tables, job.model.heads)
    if kind == "ple":
        assert found == job


def test_a_size_that_no_widths_give_is_refused() -> None:
    job = load_config("kuairand", [])
    with pytest.raises(ValueError, match=r"ple: no widths give 10 parameters .* the nearest have [\d,]+"):
        matched(job, job.model.fusion, Capacity(10, 10), "parameters")


def test_a_fusion_layer_that_does_not_go_with_the_tasks_is_refused() -> None:
    job = load_config("kuairand", ["tasks.0.features=[user_id]"])
    with pytest.raises(ValueError, match="mmoe"):
        with_fusion(job, load_config("kuairand", ["model.fusion.kind=mmoe"]).model.fusion)
