"""Plans as files: foretold, trained with, taken from another run; and what embeddings travel as between ranks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtlrec.distributed.estimate import estimate
from mtlrec.distributed.plans import TablePlan
from mtlrec.training.sharded import unsharded
from tests.support.jobs import curve, final_tensors, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import ITEMS, toy_job, toy_tree, write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RECENT = {"name": "recent_items", "table": "recent", "weights": "recent_weights", "max_length": 5}
SECTIONS: dict[str, Any] = {
    "tables": {"recent": {"rows": ITEMS, "dim": 8}},
    "features": {"sparse": [{"name": "user_id", "table": "user"}, {"name": "item_id", "table": "item"}, RECENT]},
    "optim": {"sparse": {"kind": "adagrad"}},
}
"""The table of the weighted feature is in a collection of its own."""
MIXED = {"sharding": {"constraints": {"user": {"types": ["row_wise"]}, "item": {"types": ["column_wise"]}}}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    return write_job(folder / "job.yaml", write_toy(folder / "data"), **SECTIONS)


@pytest.fixture(scope="module")
def constrained(job: Path) -> tuple[Path, Path]:
    """The job with constraints, and a run of it on two ranks."""
    config = write_job(job.parent / "mixed.yaml", job.parent / "data", **SECTIONS, **MIXED)
    run = job.parent / "constrained"
    assert run_ranks(2, run_cli, "train", config, "-o", run) == [0, 0]
    return config, run


def same(one: Path, other: Path) -> bool:
    tensors, others = final_tensors(one), final_tensors(other)
    equal = tensors.keys() == others.keys() and all(torch.equal(t, others[name]) for name, t in tensors.items())
    return equal and curve(one) == curve(other)


def test_trained_with_the_plan_that_was_made_beforehand(
    job: Path, constrained: tuple[Path, Path], tmp_path: Path
) -> None:
    config, wanted = constrained
    options = ("--device", "cpu", "--gpus-per-node", "2", "-o", tmp_path / "plan.json")
    assert run_cli("plan", config, *options) == 0
    assert (tmp_path / "plan.json").read_text() == (wanted / "plan.json").read_text()
    run = tmp_path / "run"
    given = ("--set", f"sharding.plan={tmp_path / 'plan.json'}")
    assert run_ranks(2, run_cli, "train", job, "-o", run, *given) == [0, 0]
    assert (run / "plan.json").read_text() == (wanted / "plan.json").read_text()
    assert same(run, wanted)


def edited(text: str, **changes: Any) -> str:
    """The plan with other values, by their path: user__shards__0__rank=1."""
    plan = json.loads(text)
    for path, value in changes.items():
        part, keys = plan, [int(key) if key.isdigit() else key for key in path.split("__")]
        for key in keys[:-1]:
            part = part[key]
        if value is None:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value
    return json.dumps(plan)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another number of ranks": ({"world_size": 4}, "is for 4 ranks, the job has 1; make one for these"),
    "a table less": ({"tables__user": None}, "is of other tables than the job's: user"),
    "an unknown type": ({"tables__user__sharding_type": "diagonal"}, "not a plan (tables.user.sharding_type"),
    "an unknown key": ({"tables__user__color": "red"}, "not a plan (tables.user.color"),
    "a rank too many": ({"tables__user__shards__0__rank": 7}, "user: rank 7 of 1"),
    "a gap": ({"tables__user__shards__0__size": [10, 8]}, "user: its shards do not make up a table of 50 x 8"),
    "beyond the end": ({"tables__user__shards__0__offset": [10, 0]}, "user: its shards do not make up a table of 50"),
    "a rank that is another": ({"tables__user__ranks": []}, "user: its ranks are not those of its shards"),
    "a kernel that is not": (
        {"tables__user__compute_kernel": "dense"},
        "user: data_parallel goes with the kernel dense",
    ),
    "no shards": ({"tables__user__shards": []}, "user: data_parallel has no shards, every other sharding type has"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_of_something_else(name: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, said = WRONG[name]
    plan = tmp_path / "plan.json"
    assert run_cli("plan", job, "--device", "cpu", "--gpus-per-node", "1", "-o", plan) == 0
    plan.write_text(edited(plan.read_text(), **changes))
    capsys.readouterr()
    assert run_cli("train", job, "-o", tmp_path / "run", "--set", f"sharding.plan={plan}") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert str(plan) in lines[0]


@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), ("{", "not a plan"), ("[]", "not a plan")])
def test_no_plan_at_all(
    text: str | None, said: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    if text is not None:
        plan.write_text(text)
    assert run_cli("train", job, "-o", tmp_path / "run", "--set", f"sharding.plan={plan}") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("backward", ["fp32", "fp16", "bf16"])
def test_embeddings_travel_in_half(backward: str, constrained: tuple[Path, Path], tmp_path: Path) -> None:
    """Near what fp32 gives and not equal to it: something was rounded on the way."""
    config, exact = constrained
    half = ("--set", "sharding.communication.forward=fp16", "--set", f"sharding.communication.backward={backward}")
    assert run_ranks(2, run_cli, "train", config, "-o", tmp_path / "half", *half) == [0, 0]
    wanted, found = (
        torch.tensor([line["loss"] for line in curve(run) if line["kind"] == "train"])
        for run in (exact, tmp_path / "half")
    )
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)


def test_a_cache_for_a_table_on_the_host(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for factor in (0.1, 0.5):
        table = {"types": ["row_wise"], "kernels": ["fused_uvm_caching"], "cache_load_factor": factor}
        constraint = f"sharding.constraints={{C1: {json.dumps(table)}}}"
        plan = tmp_path / "plan.json"
        assert run_cli("plan", "criteo", "--set", constraint, "-o", plan, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        made = json.loads(plan.read_text())["tables"]["C1"]
        assert (made["compute_kernel"], made["cache_load_factor"]) == ("fused_uvm_caching", factor)
        sizes.append(next(table["hbm_gb"] for table in found["tables"] if table["table"] == "C1"))
    assert sizes[1] > 1.5 * sizes[0]


KINDS = ["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "grid_shard"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("nodes", "each"), [(1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("rows", [50, 5])
def test_every_plan_that_is_made_is_taken(kind: str, nodes: int, each: int, rows: int) -> None:
    """Five rows over four ranks are 2, 2, 1 and none."""
    constraint = {"types": [kind]}
    job = toy_job(
        tables={"user": {"rows": rows, "dim": 16}, "item": {"rows": 40, "dim": 16}},
        sharding={"constraints": {"user": constraint, "item": constraint}},
    )
    found = estimate(unsharded(job, torch.device("cpu")), job, nodes, each, "cuda", 80, 100).plan
    for name, table in found.tables.items():
        assert table.sharding_type == kind
        table.check(job.tables[name].rows, 16, nodes * each)


def shard(rank: int, row: int, column: int, rows: int, columns: int) -> dict[str, Any]:
    return {"rank": rank, "offset": (row, column), "size": (rows, columns)}


@pytest.mark.parametrize(
    ("kind", "shards"),
    [
        ("row_wise", [shard(0, 0, 0, 30, 8), shard(1, 20, 0, 20, 8)]),  # overlap
        ("row_wise", [shard(0, 0, 0, 10, 8), shard(1, 10, 0, 40, 8)]),  # uneven: ids are bucketed evenly
        ("row_wise", [shard(1, 25, 0, 25, 8), shard(0, 0, 0, 25, 8)]),  # in another order than the ranks'
        ("row_wise", [shard(0, 0, 0, 50, 8)]),
        ("row_wise", [shard(0, 0, 0, 25, 8), shard(0, 25, 0, 25, 8)]),
        ("table_wise", [shard(0, 0, 0, 25, 8), shard(1, 25, 0, 25, 8)]),
        ("table_wise", [shard(0, 0, 0, 50, 4), shard(1, 0, 4, 50, 4)]),
        ("column_wise", [shard(0, 0, 0, 25, 8), shard(1, 25, 0, 25, 8)]),
        ("column_wise", [shard(0, 0, 0, 50, 1), shard(1, 0, 1, 50, 7)]),
        ("column_wise", [shard(0, 0, 0, 50, 4), shard(1, 0, 0, 50, 4)]),
    ],
)
def test_shards_that_torchrec_would_not_honor(kind: str, shards: list[dict[str, Any]]) -> None:
    ranks = [one["rank"] for one in shards]
    plan = {"sharding_type": kind, "compute_kernel": "fused", "ranks": ranks, "shards": shards}
    with pytest.raises(ValueError, match="its shards do not make up a table of 50 x 8 that is"):
        TablePlan.model_validate(plan).check(50, 8, 2)


def test_an_evaluation_does_without_the_plan_of_the_training(
    job: Path, constrained: tuple[Path, Path], tmp_path: Path
) -> None:
    """It was for two ranks, and its file is gone."""
    shutil.copy(constrained[1] / "plan.json", tmp_path / "plan.json")
    run = tmp_path / "run"
    given = ("--set", f"sharding.plan={tmp_path / 'plan.json'}", "--set", "train.max_steps=2")
    assert run_ranks(2, run_cli, "train", job, "-o", run, *given) == [0, 0]
    (tmp_path / "plan.json").unlink()
    assert run_cli("evaluate", run) == 0
    assert run_cli("train", run / "config.yaml", "-o", run, "--resume", "--set", "sharding.plan=null") == 0


def test_adam_is_not_for_replicated_tables(tmp_path: Path) -> None:
    constraint = {"types": ["data_parallel"]}
    job = toy_job(optim={"sparse": {"kind": "adam"}}, sharding={"constraints": {"user": constraint}})
    with pytest.raises(ValueError, match=r"sharding\.constraints\.user: data_parallel does not go with .* adam"):
        estimate(unsharded(job, torch.device("cuda")), job, 1, 2, "cuda", 80, 100)


@pytest.fixture
def five_rows(tmp_path: Path) -> Path:
    tree = toy_tree(write_toy(tmp_path / "data"))
    tree["tables"]["user"]["rows"] = 5
    tree["features"]["sparse"][0]["transform"] = "modulo"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "job.yaml"


def test_no_rank_is_left_without_a_row_on_cpu(five_rows: Path, tmp_path: Path) -> None:
    """FBGEMM has no lookup for an empty shard there; trained, saved, resumed, and evaluated by one."""
    for steps in (3, 6):
        more = ("--resume", "--set", f"train.max_steps={steps}", "--set", "train.epochs=9")
        assert run_ranks(4, run_cli, "train", five_rows, "-o", tmp_path / "run", *more) == [0] * 4
    assert run_cli("evaluate", tmp_path / "run") == 0


def test_rows_that_do_not_go_round(five_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--device", "cpu", "--gpus-per-node", "4", "--set", "sharding.constraints={user: {types: [row_wise]}}")
    assert run_cli("plan", five_rows, *options) == 2
    assert "sharding.constraints.user: its 5 rows over 4 ranks leave one without" in capsys.readouterr().err
