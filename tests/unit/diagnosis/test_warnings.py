"""Every warning has a diagnosis that earns it, and one that only just does not."""

import math
from dataclasses import replace

import pytest

from mtlrec.diagnosis.diagnosis import Curve, Diagnosis
from mtlrec.diagnosis.level_sums import Level, names_of
from mtlrec.diagnosis.table_use import TableUse
from mtlrec.diagnosis.warnings import warnings_of
from mtlrec.layers import PLE, AdaTT, AdaTTSp, HoME, MMoE

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
    shared=1,
)
USER = TableUse("user", 200_000, 5_000, 3_000, 0.5, drawn_norm=0.2, hot_norm=0.8, seen_norm=0.4, other_norm=9.0)
FINE = Diagnosis(100, [LEVEL], ["click", "like"], [1.0, 2.0], [[1.0, 0.3], [0.3, 1.0]], [USER])


def with_level(**changes: object) -> Diagnosis:
    return replace(FINE, levels=[replace(LEVEL, **changes)])  # type: ignore[arg-type]


def with_table(**changes: object) -> Diagnosis:
    return replace(FINE, tables=[replace(USER, **changes)])  # type: ignore[arg-type]


def with_curve(predicted: list[float], observed: list[float], positives: int) -> Diagnosis:
    return replace(FINE, curves={"click": Curve(predicted, observed, [500.0, 500.0], positives)})


def test_a_healthy_model_earns_none() -> None:
    assert warnings_of(FINE) == []
    assert warnings_of(replace(FINE, levels=[])) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            with_level(gate=[[0.695, 0.005, 0.3], [0.695, 0.005, 0.3]]),
            ["level 1: dead experts, given under 1% by every gate", ": like; gate_dropout"],
        ),
        (with_level(gate=[[0.68, 0.02, 0.3], [0.68, 0.02, 0.3]]), ["nearly dead experts: like (2.0% at most); gate"]),
        (with_level(zeros=[0.95, 0.5, 0.97]), ["nearly all zero", ": click (95%), shared (97%); activation: silu"]),
        (
            with_level(peaked=[0.8, 0.7]),
            ["more than 0.9 in most rows", "click (mostly click, 80%), like (mostly like, 70%); gate_dropout"],
        ),
        (with_level(entropy=[0.9, 0.999]), ["gates that weigh all experts alike: like: the experts"]),
        (with_level(norm=[1.0, 2.0, 30.0]), ["expert shared are 30 times as long as those of click", "norm: layer"]),
        (
            with_level(gate=[[0.5, 0.495, 0.005], [0.4, 0.3, 0.3]]),
            ["take next to nothing from the shared experts, and learn alone: click (0.5%); fewer"],
        ),
        (with_table(hot_share=0.95), ["table user: 95% of the lookups go to 1% of its 200,000 rows", "fused_uvm_cach"]),
        (with_table(hot_norm=2.2), ["many times as long as they were drawn: user (11 times)", "optim.sparse.lr"]),
        (with_table(seen_norm=2.2, hot_norm=math.nan), ["user (11 times)"]),
        (with_curve([0.1, 0.5], [0.1, 0.35], 250), ["click: 1.33 positives are predicted for each", "--calibrate"]),
        (
            replace(FINE, curves={"click": Curve([0.6], [0.6], [1000.0], 600)}),
            ["click: gives every row the same probability", "optim.dense.lr"],
        ),
        (with_curve([0.1, 0.3], [0.1, 0.45], 250), ["click: 0.73 positives are predicted for each"]),
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
        with_level(
            gates=["click", "like", "shared"],
            gate=[[0.5, 0.2, 0.3], [0.2, 0.5, 0.3], [0.5, 0.495, 0.005]],
            peaked=[0.1] * 3,
            entropy=[0.9] * 3,
        ),
        replace(FINE, gradient_norm=[1.0, 10.0], gradient_cosine=[[1, -0.1], [-0.1, 1]]),
        replace(FINE, gradient_norm=[0.0, 10.0], gradient_cosine=[[math.nan] * 2] * 2),
        with_table(hot_share=0.9, hot_norm=2.0, seen_norm=2.0),
        with_table(hot_share=0.95, rows=99_999),
        with_table(hot_share=math.nan, hot_norm=math.nan, seen_norm=math.nan, lookups=0, seen=0),
        with_curve([0.1, 0.5], [0.1, 0.41], 250),
        with_curve([0.1, 0.5], [0.1, 0.2], 199),
    ],
)
def test_what_only_just_passes_earns_none(found: Diagnosis) -> None:
    assert warnings_of(found) == []


def test_one_expert_alone_is_not_a_collapse() -> None:
    alone = Level("level 1", ["a"], ["expert 1"], [[1.0]], [[0.0]], [[1.0]], [0.0], [1.0], [1.0], [0.0])
    assert warnings_of(replace(FINE, levels=[alone])) == []


def test_experts_and_gates_are_named_by_their_owners() -> None:
    tasks = ["click", "buy", "like"]
    ple = PLE(4, 3, [[4], [4]], num_task_experts=[2, 1, 1], num_shared_experts=2)
    assert names_of(ple.expert_owners[0], tasks) == ["click 1", "click 2", "buy", "like", "shared 1", "shared 2"]
    assert names_of(ple.gate_owners[0], tasks) == [*tasks, "shared"]
    assert names_of(ple.gate_owners[1], tasks) == tasks
    assert names_of(AdaTTSp(4, 3, [[4]]).expert_owners[0], tasks) == tasks
    assert names_of(AdaTT(4, 3, [[4], [4]]).gate_owners[0], ["click", "shared", "like"])[1::2] == [
        "shared",
        "shared module",
    ]
    mmoe = MMoE(4, 3, [[4], [4]], num_experts=3)
    assert names_of(mmoe.expert_owners[0], tasks) == ["expert 1", "expert 2", "expert 3"]
    assert names_of(mmoe.gate_owners[0], tasks) == ["for expert 1", "for expert 2", "for expert 3"]
    assert names_of(mmoe.gate_owners[1], tasks) == tasks
    home = HoME(4, 3, [[4], [4]], task_groups=[0, 1, 0], num_group_experts=2)
    of_groups = ["group 0 1", "group 0 2", "group 1 1", "group 1 2", "shared"]
    assert names_of(home.expert_owners[0], tasks) == of_groups
    assert names_of(home.gate_owners[0], tasks) == ["group 0", "group 1", "shared"]
    assert names_of(home.expert_owners[1], tasks) == [*tasks, *of_groups]
    assert names_of(home.gate_owners[1], tasks) == tasks
