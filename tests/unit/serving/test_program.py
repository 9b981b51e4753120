"""What is exported says what the model says, for every kind of model and any number of rows."""

from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.config import JobConfig
from mtlrec.models.build import build_task_losses, build_train_module
from mtlrec.serving.export import serving_program
from mtlrec.serving.lookup import FrozenSparseArch, Precision
from mtlrec.serving.program import PARTS, arguments, exported
from tests.support.toy import FUSIONS, collated, toy_job, toy_table, toy_tree

CPU = torch.device("cpu")
TOWERS = {"tower_hidden": [8]}
MODELS: dict[str, dict[str, Any]] = {
    **{f"fusion_{name}": {"fusion": fusion} for name, fusion in FUSIONS.items()},
    "heads_independent": {"heads": {"kind": "independent"}},
    "heads_entire_space": {"heads": {"kind": "independent", "entire_space": True}},
    "heads_aitm": {"heads": {"kind": "aitm", "tower_hidden": [8, 8]}},
    "heads_dbmtl": {"heads": {"kind": "dbmtl", "relation_hidden": [8], **TOWERS}},
    "heads_escm2_ips": {"heads": {"kind": "escm2_ips", **TOWERS}},
    "heads_escm2_dr": {"heads": {"kind": "escm2_dr", **TOWERS}},
    "bottom_dot": {"bottom": {"kind": "dot", "hidden": [8]}},
    "bottom_cross": {"bottom": {"kind": "cross", "num_layers": 2, "rank": 4}},
    "bottom_masknet": {"bottom": {"kind": "masknet", "block_dim": 8}},
}


def with_weights() -> JobConfig:
    tree = toy_tree()
    tree["features"]["sparse"][2]["weights"] = "recent_weights"
    return JobConfig.model_validate(tree)


def with_weighted_tables_alone() -> JobConfig:
    """There is no collection of unweighted ones."""
    tree = with_weights().dump()
    del tree["tables"]["user"], tree["features"]["sparse"][0]
    return JobConfig.model_validate(tree)


def with_features_of_tasks() -> JobConfig:
    tree = toy_tree(model={"fusion": FUSIONS["asymmetric"]})
    tree["tasks"][0]["features"] = ["user_id", "age"]
    return JobConfig.model_validate(tree)


def with_watch_time_and_wide_tables() -> JobConfig:
    tree = toy_tree()
    tree["tasks"].append({"name": "seconds", "kind": "watch_time", "label": "watch_s", "space": "click"})
    tree["tables"]["item"]["dim"] = 20
    return JobConfig.model_validate(tree)


JOBS = {name: toy_job(model=model) for name, model in MODELS.items()} | {
    "weights": with_weights(),
    "weights_alone": with_weighted_tables_alone(),
    "features_of_tasks": with_features_of_tasks(),
    "watch_time": with_watch_time_and_wide_tables(),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_it_says_what_the_model_says(job: JobConfig) -> None:
    torch.manual_seed(1)
    module = build_train_module(job, CPU).eval()
    _train_batch_norm(module)
    program = serving_program(module, job, "fp32", CPU)
    function = exported(program, arguments(collated(toy_table(9), job=job))).module()
    for rows in (1, 2, 9, 233):
        batch = collated(toy_table(rows, seed=rows), job=job)
        with torch.no_grad():
            found = function(*arguments(batch))
            expected = module.model(batch.dense, batch.sparse)
        for part in PARTS:
            torch.testing.assert_close(found[part], getattr(expected, part), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            found["predictions"], build_task_losses(job).predictions(expected), rtol=1e-5, atol=1e-6
        )
        assert found["predictions"].std() > 0 or rows == 1


def _train_batch_norm(module: torch.nn.Module) -> None:
    """As after training: no mean 0, no variance 1."""
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)


def test_rows_without_ids_pool_to_zero() -> None:
    job = toy_job()
    program = serving_program(build_train_module(job, CPU).eval(), job, "fp32", CPU)
    function = exported(program, arguments(collated(toy_table(9)))).module()
    dense, _, lengths = arguments(collated(toy_table(3)))
    nothing = function(dense, torch.zeros(0, dtype=torch.int64), torch.zeros_like(lengths))
    assert torch.isfinite(nothing["predictions"]).all()
    ids = KeyedJaggedTensor(
        job.features.collections["bags"].features, torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(9).int()
    )
    assert not any(vector.any() for vector in program.sparse_arch({"bags": ids}).values())


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 5e-3)])
def test_quantized_rows_are_near_their_own(precision: Precision, most: float) -> None:
    """Sums of rows, some weighted, against those of the float32 tables; int8 is no better than its steps."""
    job = with_weights()
    sparse_arch = build_train_module(job, CPU).model.sparse_arch
    frozen = FrozenSparseArch(sparse_arch, job.features, job.tables, precision, CPU)
    batch = collated(toy_table(50), job=job)
    assert list(batch.sparse) == ["bags", "weighted_bags"]
    with torch.no_grad():
        found, expected = frozen(batch.sparse), sparse_arch(batch.sparse)
    assert list(found) == list(expected)
    apart = max(float((found[name] - expected[name]).detach().abs().max()) for name in expected)
    assert apart <= most
    assert precision == "fp32" or apart > 0


def test_int8_rows_have_four_bytes_beside_their_values() -> None:
    job = toy_job()
    sparse_arch = build_train_module(job, CPU).model.sparse_arch
    sizes = {
        precision: FrozenSparseArch(sparse_arch, job.features, job.tables, precision, CPU)
        .collections["bags"]
        ._kernels[0]
        .weights_host.numel()
        for precision in ("fp32", "fp16", "int8")
    }
    rows = sum(table.rows for table in job.tables.values())
    for precision, of_row in (("fp32", 8 * 4), ("fp16", 8 * 2), ("int8", 8 + 4)):
        assert 0 <= sizes[precision] - rows * of_row < 64 * len(job.tables)  # each table begins on a cache line
