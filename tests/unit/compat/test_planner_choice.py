"""A plan still does not say what the planner estimated for it. tests/distributed/test_estimate.py reads ours."""

from dataclasses import fields

from torchrec.distributed.types import ParameterSharding

ESTIMATES = {"perf", "storage", "shards"}


def test_a_plan_has_no_estimates() -> None:
    told = ESTIMATES & {field.name for field in fields(ParameterSharding)}
    assert not told, "compat/planner_choice.py can be deleted"
