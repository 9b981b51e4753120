"""Every warning has a diagnosis that earns it, and one that only just does not."""

import math
from dataclasses import replace

import pytest

from mtlrec.analysis.diagnostics import Diagnosis, Level, expert_names, gate_names
from mtlrec.analysis.warnings import warnings_of
from mtlrec.config.file import load_config

LEVEL = Level(
    name="level 1",
    gates=["click", "like"],
    experts=["click", "like", "shared"],
    gate=[[0.5, 0.2, 0.3], [0.2, 0.5, 0.3]],
    deviation=[[0.1] * 3] * 2,
    weight=[[0.5, 0.2, 0.3], [0.2, 0.5, 0.3]],
    entropy=[0.9, 0.9],
    peaked=[0.1, 0.1],
    norm=[1.0, 2.0, 3.0],
    zeros=[0.4, 0.5, 0.6],
)
FINE = Diagnosis(100, [LEVEL], ["click", "like"], [1.0, 2.0], [[1.0, 0.3], [0.3, 1.0]])


def with_level(**changes: object) -> Diagnosis:
    return replace(FINE, levels=[replace(LEVEL, **changes)])  # type: ignore[arg-type]


def test_a_healthy_model_earns_none() -> None:
    assert warnings_of(FINE) == []
    assert warnings_of(replace(FINE, levels=[])) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (with_level(gate=[[0.695, 0.005, 0.3], [0.695, 0.005, 0.3]]), ["expert like is dead", "gate_dropout"]),
        (with_level(gate=[[0.68, 0.02, 0.3], [0.68, 0.02, 0.3]]), ["expert like is nearly dead, 2.0% at most"]),
        (with_level(zeros=[0.95, 0.5, 0.5]), ["95% of the outputs of expert click are zero", "silu"]),
        (with_level(peaked=[0.8, 0.1]), ["in 80% of rows the gate of click gives one expert (mostly click)"]),
        (with_level(entropy=[0.9, 0.999]), ["the gate of like weighs all experts alike"]),
        (with_level(norm=[1.0, 2.0, 30.0]), ["expert shared are 30 times as long as those of click", "norm: layer"]),
        (
            with_level(gate=[[0.5, 0.495, 0.005], [0.4, 0.3, 0.3]]),
            ["click takes 0.5% from the shared experts: it learns alone"],
        ),
        (replace(FINE, gradient_norm=[1.0, 20.0]), ["the gradients of like", "20 times those of click"]),
        (replace(FINE, gradient_cosine=[[1, -0.4], [-0.4, 1]]), ["click and like pull", "cosine -0.40", "pcgrad"]),
    ],
)
def test_a_warning_names_what_is_wrong_and_the_option(found: Diagnosis, words: list[str]) -> None:
    (line,) = warnings_of(found)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "found",
    [
        with_level(gate=[[0.66, 0.04, 0.3], [0.66, 0.04, 0.3]]),
        with_level(zeros=[0.9, 0.5, 0.5], peaked=[0.5, 0.5], entropy=[0.99, 0.99], norm=[1.0, 2.0, 10.0]),
        with_level(norm=[0.0, 2.0, 3.0]),
        replace(FINE, gradient_norm=[1.0, 10.0], gradient_cosine=[[1, -0.1], [-0.1, 1]]),
        replace(FINE, gradient_norm=[0.0, 10.0], gradient_cosine=[[math.nan] * 2] * 2),
    ],
)
def test_what_only_just_passes_earns_none(found: Diagnosis) -> None:
    assert warnings_of(found) == []


def test_one_expert_alone_is_not_a_collapse() -> None:
    alone = Level("level 1", ["a"], ["expert 1"], [[1.0]], [[0.0]], [[1.0]], [0.0], [1.0], [1.0], [0.0])
    assert warnings_of(replace(FINE, levels=[alone])) == []


def test_experts_and_gates_are_named_by_their_tasks() -> None:
    tasks = [task.name for task in load_config("kuairand_ple", []).tasks]
    ple = load_config(
        "kuairand_ple", ["model.fusion.num_task_experts=[2,1,1,1,1,1,1,1]", "model.fusion.num_shared_experts=2"]
    )
    assert expert_names(ple, 11) == ["click 1", "click 2", *tasks[1:], "shared 1", "shared 2"]
    assert gate_names(ple, 9, 11) == [*tasks, "shared"]
    assert gate_names(ple, 8, 11) == tasks
    assert expert_names(load_config("kuairand_adatt_sp", []), 8) == tasks
    mmoe = load_config("kuairand_mmoe", [])
    assert expert_names(mmoe, 2) == ["expert 1", "expert 2"]
    assert gate_names(mmoe, 3, 3) == ["gate 1", "gate 2", "gate 3"]
