"""Whole jobs on one rank, as a table: train, evaluate, predict, resume; every kind that a config can name.

What must be the same is compared bit by bit: resumed = uninterrupted, and the same seed gives the same curve.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from tests.ranks import run_cli
from tests.toy import FUSIONS, toy_table, toy_tree, write_toy

FEATURES_PER_TASK = [
    {"name": "click", "label": "is_click"},
    {"name": "buy", "label": "is_buy", "given": "click", "features": ["age", "item_id", "recent_items"]},
]
EVERY_OPTION = [
    {"name": "click", "label": "is_click", "negative_sampling_rate": 0.5, "sample_weight": "importance"},
    {"name": "buy", "label": "is_buy", "given": "click", "pos_weight": 2.0, "space": "shown_like or watch_s > 5"},
    {"name": "like", "label": "is_like", "space": "shown_like and not buy", "label_smoothing": 0.1},
    {"name": "ratio", "kind": "regression", "label": "watch_ratio", "space": "click", "loss": "huber"},
    {"name": "watch", "kind": "watch_time", "label": "watch_s", "space": "0 < watch_s <= 40", "weight": 0.1},
]
WEIGHTED = {"name": "recent_items", "table": "item", "pooling": "mean", "weights": "recent_weights", "max_length": 5}
EVERY_TRANSFORM = {
    "dense": [
        {"name": "age", "transform": ["clip", "standardise"], "min": 20, "max": 60, "mean": 40, "std": 10},
        {"name": "price_in_logs", "column": "price", "transform": "log1p"},
    ],
    "sparse": [
        {"name": "user_id", "table": "user", "transform": "hash", "seed": 3},
        {"name": "item_id", "table": "item", "transform": "modulo"},
        {
            "name": "price_bucket",
            "column": "price",
            "table": "item",
            "transform": "bucketize",
            "boundaries": [5, 20, 50],
        },
        WEIGHTED,
    ],
}
NEEDS_TORCHJD = ("pcgrad", "mgda", "upgrad", "aligned", "cagrad")

JOBS: dict[str, dict[str, Any]] = {
    **{f"fusion_{kind}": {"model": {"fusion": fusion}} for kind, fusion in FUSIONS.items()},
    "dot": {"model": {"bottom": {"kind": "dot", "hidden": [16]}}},
    "cross": {"model": {"bottom": {"kind": "cross", "rank": 4}}},
    "independent": {"model": {"heads": {"kind": "independent"}}},
    "independent_entire_space": {"model": {"heads": {"kind": "independent", "entire_space": True}}},
    "aitm": {"model": {"heads": {"kind": "aitm", "tower_hidden": [8, 8]}}},
    "dbmtl": {"model": {"heads": {"kind": "dbmtl", "tower_hidden": [8], "relation_hidden": [8]}}},
    "dbmtl_without_towers": {"model": {"heads": {"kind": "dbmtl", "tower_hidden": []}}},
    "escm2_ips": {"model": {"heads": {"kind": "escm2_ips", "tower_hidden": [8]}}},
    "escm2_dr": {"model": {"heads": {"kind": "escm2_dr", "tower_hidden": [8], "propensity_floor": 0.1}}},
    "every_option_of_a_task": {"tasks": EVERY_OPTION},
    "gauc": {"metrics": {"group_by": "item_id"}},
    "uncertainty": {"loss": {"weighting": {"kind": "uncertainty"}}},
    "dwa": {"loss": {"weighting": {"kind": "dwa"}}},
    "dwa_by_step": {"loss": {"weighting": {"kind": "dwa", "every": 2, "temperature": 0.5}}},
    **{kind: {"loss": {"weighting": {"kind": kind}}} for kind in NEEDS_TORCHJD},
    "bf16_upgrad": {"train": {"precision": "bf16"}, "loss": {"weighting": {"kind": "upgrad"}}},
    "adagrad_sgd": {"optim": {"sparse": {"kind": "adagrad"}, "dense": {"kind": "sgd", "lr": 0.1, "decay": "linear"}}},
    "sgd_adamw_clipped": {
        "optim": {
            "sparse": {"kind": "sgd", "lr": 0.5, "warmup_steps": 3, "decay": "cosine", "min_lr_ratio": 0.1},
            "dense": {"kind": "adamw", "weight_decay": 0.1, "clip_norm": 0.5},
        }
    },
    "bf16": {"train": {"precision": "bf16"}},
    "decay_by_step": {
        "loss": {"weighting": {"kind": "decay", "initial": {"buy": 2.0}, "rate": {"buy": 0.9}, "unit": "step"}}
    },
    "decay_by_epoch": {"loss": {"weighting": {"kind": "decay", "rate": {"click": 0.5}}}},
    "unshuffled": {"data": {"shuffle": "none"}},
    "row_groups_shuffled": {"data": {"shuffle": "row_group"}},
    "replicated_tables": {"sharding": {"constraints": {"user": {"types": ["data_parallel"]}}, "ddr_gb": 1}},
    "every_transform_and_weighted_ids": {"features": EVERY_TRANSFORM},
    "no_dense_features": {"features": {"dense": []}},
    "features_per_task_adatt_sp": {"tasks": FEATURES_PER_TASK},
    "features_per_task_ple": {
        "tasks": FEATURES_PER_TASK,
        "model": {"fusion": {"kind": "ple", "expert_hidden": [[16], [8]], "num_task_experts": 2}},
    },
    **{
        f"features_per_task_{kind}": {"tasks": FEATURES_PER_TASK, "model": {"fusion": FUSIONS[kind]}}
        for kind in ("single_task", "asymmetric", "cross_stitch", "customized")
    },
    "features_per_task_adatt": {
        "tasks": FEATURES_PER_TASK,
        "model": {"fusion": {"kind": "adatt", "expert_hidden": [[16], [8]]}},
    },
    "bf16_batch_norm": {"train": {"precision": "bf16"}, "model": {"fusion": FUSIONS["batch_norm"]}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def write_job(path: Path, root: Path, **sections: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(toy_tree(root, **sections)))
    return path


def curve(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is a time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("samples_per_s", "data_wait")} for record in records]


def final_tensors(run: Path) -> dict[str, Any]:
    """The last checkpoint's model, read without the code under test."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    tensors: dict[str, Any] = {}
    last = max((run / "checkpoints").glob("step_*"))
    _load_state_dict(tensors, FileSystemReader(last), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return flat(tensors)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


@pytest.mark.parametrize("name", JOBS)
def test_job(name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains; resumes from mid-epoch to bitwise the same end; evaluates to the same metrics; predicts what they say."""
    if name in (*NEEDS_TORCHJD, "bf16_upgrad"):
        pytest.importorskip("torchjd", reason="TorchJD is not installed")
    config, run = write_job(tmp_path / "job.yaml", data, **JOBS[name]), tmp_path / "run"
    every = ["--set", "train.checkpoint_every=4", "--set", "train.keep_checkpoints=9"]
    assert run_cli("train", config, "-o", run, *every, "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    assert all(("gauc" in metrics) == (name == "gauc") for task, metrics in trained["test"].items() if task != "ratio")
    before, weights = curve(run), final_tensors(run)
    assert len([record for record in before if record["kind"] == "train"]) == 18  # 557 rows: 9 steps an epoch, twice

    kept = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert kept == [f"step_{step:08d}" for step in (4, 8, 12, 16, 18)]
    killed_after(run, 12)
    assert run_cli("train", config, "-o", run, *every, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == trained
    assert curve(run) == before
    again = final_tensors(run)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[key], again[key]) for key in weights)

    assert run_cli("evaluate", run, "--json") == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["test"] == trained["test"]
    if name != "every_option_of_a_task":  # rows of a weight and a space of their own
        check_predictions(run, data, trained["test"], tmp_path, capsys)


def check_predictions(run: Path, data: Path, metrics: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored = folder / "scored.parquet"
    assert run_cli("predict", run, "--input", data / "test", "--output", scored, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 101
    table = pq.read_table(scored)
    source = pq.read_table(data / "test")
    assert table.select(source.column_names).equals(source)
    loss = log_loss(np.array(table["is_click"]), np.array(table["pred_click"]))
    assert loss == pytest.approx(metrics["click"]["log_loss"], rel=1e-2 if "bf16" in str(run) else 1e-4)
    # little is learnt in 18 steps: predictions lie close together, and AUC's bins hold several of them
    buy = roc_auc_score(np.array(table["is_buy"]), np.array(table["pred_buy"]))
    assert buy == pytest.approx(metrics["buy"]["entire_auc"], abs=0.03)
    if "pred_ratio" in table.column_names:
        inside = np.array(table["is_click"])
        error = np.array(table["pred_ratio"])[inside] - np.array(table["watch_ratio"])[inside]
        assert (error**2).mean() == pytest.approx(metrics["ratio"]["mse"], rel=1e-2)


def test_the_same_seed_gives_the_same_curve_and_another_does_not(data: Path, tmp_path: Path) -> None:
    config = write_job(tmp_path / "job.yaml", data)
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run_cli("train", config, "-o", tmp_path / run, "--set", f"train.seed={seed}") == 0
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


def test_a_run_folder_holds_what_was_promised(data: Path, tmp_path: Path) -> None:
    config, run = write_job(tmp_path / "job.yaml", data), tmp_path / "run"
    assert run_cli("train", config, "-o", run, "--set", "train.eval_every=5") == 0
    assert {path.name.split(".")[0] for path in run.iterdir()} >= {"config", "plan", "metrics", "events", "checkpoints"}
    assert [record["step"] for record in curve(run) if record["kind"] == "valid"] == [5, 10, 15, 18]
    plan = json.loads((run / "plan.json").read_text())
    assert plan.keys() == {"item", "user"}
    rerun = tmp_path / "rerun"
    assert run_cli("train", run / "config.yaml", "-o", rerun) == 0  # the resolved config is a job
    assert [r for r in curve(rerun) if r["kind"] == "train"] == [r for r in curve(run) if r["kind"] == "train"]


def test_masked_features_get_no_gradient(data: Path, tmp_path: Path) -> None:
    """With one task that may not see the users, their table stays as it was initialised."""
    tasks = [{"name": "click", "label": "is_click", "features": ["item_id"]}]
    config, run = write_job(tmp_path / "job.yaml", data, tasks=tasks), tmp_path / "run"
    stop = ["--set", "train.keep_checkpoints=9", "--set", "train.checkpoint_every=1", "--set", "train.max_steps=9"]
    assert run_cli("train", config, "-o", run, *stop) == 0
    last = final_tensors(run)
    for path in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    first = final_tensors(run)
    moved = {key: not torch.equal(first[key], last[key]) for key in first if key.endswith("embedding_bags.user.weight")}
    assert list(moved.values()) == [False]
    assert any(not torch.equal(first[k], last[k]) for k in first if k.endswith("embedding_bags.item.weight"))


def test_warm_start_lists_what_was_loaded_grown_and_fresh(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    assert run_cli("train", write_job(tmp_path / "old.yaml", data), "-o", old) == 0
    tree = toy_tree(data)
    tree["tables"]["item"]["rows"] = 60
    tree["tables"]["hour"] = {"rows": 24, "dim": 4}
    tree["features"]["sparse"].append({"name": "shown_like", "table": "hour"})
    tree["tasks"][2] = {"name": "share", "label": "is_like"}
    tree["optim"] = {"sparse": {"lr": 1e-12}, "dense": {"lr": 1e-12}}
    tree["train"]["max_steps"] = 1
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    assert run_cli("train", tmp_path / "new.yaml", "-o", new, "--init-from", old) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if "started from" in line)
    loaded, grown, fresh, unused = re.split("; (?:grown|fresh|unused): ", said)
    assert "parameters loaded" in loaded
    assert "model.tables.embedding_bags.item.weight (40 -> 60 rows)" in grown
    assert "model.over_arch.bottom.mlp.net.0.weight (87%)" in grown  # 26 of 30 columns
    assert "model.over_arch.fusion.levels.0.experts.layers.0.weight (75%)" in grown  # three of four tasks
    assert "model.tables.embedding_bags.hour.weight" in fresh
    assert "by_task.task_share.1.weight" in fresh
    assert "by_task.task_like.1.weight" in unused
    before, after = final_tensors(old), final_tensors(new)
    item = "model.model.tables.embedding_bags.item.weight"
    torch.testing.assert_close(after[item][:40], before[item], atol=1e-6, rtol=0)
    assert after[item][40:].abs().sum() > 0
    tower = "model.model.over_arch.heads.towers.by_task.task_buy.1.weight"
    torch.testing.assert_close(after[tower], before[tower], atol=1e-6, rtol=0)


def test_warm_start_takes_batch_norm_statistics(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path / "job.yaml", data, model={"fusion": FUSIONS["batch_norm"]}, train={"max_steps": 3})
    assert run_cli("train", config, "-o", tmp_path / "old") == 0
    capsys.readouterr()
    assert run_cli("train", config, "-o", tmp_path / "new", "--init-from", tmp_path / "old") == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if "started from" in line)
    assert "parameters loaded" in said
    assert not re.search("grown|fresh|unused", said)
    counted = [tensor for name, tensor in final_tensors(tmp_path / "new").items() if "num_batches_tracked" in name]
    assert [int(count) for count in counted] == [6, 6, 6]


TYPE = ["--set", "features.sparse.item_id.table=type"]

# what a user gets wrong -> what the one line says
MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["--set", "train.epoch=2"], "train.epoch = 2: unknown key"),
    "no such file": (["--set", "data.train=[nothing.parquet]"], "no file matches"),
    "no test split": (["--set", "data.test=[later/*.parquet]"], "no file matches"),
    "missing column": (
        ["--set", "features.dense.age.name=size"],
        "no column 'size', which features.dense.size reads; the file has",
    ),
    "missing column of a space": (
        ["--set", "tasks.like.space=shown_like and seen > 2"],
        "no column 'seen', which tasks.like.space reads",
    ),
    "a group of another type": (
        ["--set", "metrics.group_by=price"],
        "column 'price' is float; metrics.group_by takes integers or text",
    ),
    "a weight of another type": (
        ["--set", "tasks.like.sample_weight=recent_items"],
        "'recent_items' is list<element: int64>; tasks.like.sample_weight takes numbers or booleans",
    ),
    "id out of range": (["--set", "tables.item.rows=20"], "raise tables.item.rows"),
    "cuda on cpu": (["--set", "train.device=cuda"], "train.device is cuda"),
    "adam on cpu": (["--set", "optim.sparse.kind=adam"], "FBGEMM has no Adam on CPU"),
    "dot with two widths": (["--set", "model.bottom={kind: dot}", "--set", "tables.item.dim=16"], "dim"),
    "a table that torch cannot name": (["--set", "tables.type={rows: 9, dim: 4}", *TYPE], "call the table type_id"),
    "impossible plan": (["--set", "sharding={ddr_gb: 1e-9}"], "sharding: no plan"),
    "a kernel that CPUs lack": (
        ["--set", "sharding.constraints={item: {types: [row_wise], kernels: [fused_uvm]}}"],
        "no plan",
    ),
    "a file for a folder": (
        ["--output", "{root}/test/part-0.parquet"],
        "is a file, or its checkpoints are; name a folder",
    ),
    "nothing to start from": (["--init-from", "nowhere"], "nowhere: no complete checkpoint"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments, message = MISTAKES[name]
    arguments = [word.format(root=data) if "{root}" in word else word for word in arguments]
    assert run_cli("train", write_job(tmp_path / "job.yaml", data), "-o", tmp_path / "run", *arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert message in said[0]


def killed_after(run: Path, step: int) -> None:
    """What a run killed after that step's checkpoint leaves."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


@pytest.fixture
def mid_epoch(data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A job and its run, stopped at step 8 of the first epoch's 9."""
    config, run = write_job(tmp_path / "job.yaml", data), tmp_path / "run"
    assert run_cli("train", config, "-o", run, "--set", "train.checkpoint_every=8", "--set", "train.epochs=1") == 0
    killed_after(run, 8)
    return config, run


@pytest.mark.parametrize(
    ("change", "further"),
    [
        ("data.batch_size=128", 1),
        ("data.batch_size=32", 2),
        ("data.shuffle=none", 1),
        ("data.shuffle_buffer=7", 1),
        ("train.seed=1", 1),
    ],
)
def test_resuming_in_mid_epoch_with_another_order_takes_the_rows_that_are_left(
    change: str, further: int, mid_epoch: tuple[Path, Path]
) -> None:
    """45 of 557 rows after 8 steps of 64."""
    config, run = mid_epoch
    assert run_cli("train", config, "-o", run, "--resume", "--set", change, "--set", "train.epochs=1") == 0
    state = json.loads((max((run / "checkpoints").iterdir()) / "job.json").read_text())
    assert (state["step"], state["position"]) == (8 + further, {"epoch": 1, "phases": []})


def test_resuming_in_mid_epoch_wants_the_same_files(
    mid_epoch: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = mid_epoch
    root = write_toy(tmp_path / "more", train=(300, 257, 80))
    assert run_cli("train", config, "-o", run, "--resume", "--set", f"data.root={root}") == 2
    assert "since then the files or their row groups have changed" in capsys.readouterr().err
    moved = write_toy(tmp_path / "moved")
    assert run_cli("train", config, "-o", run, "--resume", "--set", f"data.root={moved}") == 0


def test_a_resume_that_does_not_fit_leaves_the_run_as_it_was(
    mid_epoch: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = mid_epoch
    before = (run / "config.yaml").read_text()
    assert run_cli("train", config, "-o", run, "--resume", "--set", "tables.user.dim=16") == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 0
    assert (run / "config.yaml").read_text() == before
    assert run_cli("evaluate", run) == 0


def test_tasks_in_another_order_are_refused(
    mid_epoch: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts are kept by position: a task's would be another's."""
    config, run = mid_epoch
    tree = yaml.safe_load(config.read_text())
    tree["tasks"] = [tree["tasks"][index] for index in (2, 1, 0, 3)]
    (tmp_path / "reordered.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("train", tmp_path / "reordered.yaml", "-o", run, "--resume") == 2
    said = capsys.readouterr().err
    assert "its tasks are click, buy, like, ratio, the job's like, buy, click, ratio" in said
    assert run_cli("evaluate", run, "--set", "tasks.like.name=love") == 2
    assert "the job's click, buy, love, ratio" in capsys.readouterr().err


def test_a_fault_in_the_valid_split_costs_nothing_that_was_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = toy_table(70).set_column(toy_table(1).column_names.index("is_click"), "is_click", pa.array([2.0] * 70))
    (tmp_path / "bad").mkdir()
    pq.write_table(bad, tmp_path / "bad" / "part.parquet")
    config, run = write_job(tmp_path / "job.yaml", data), tmp_path / "run"
    assert run_cli("train", config, "-o", run, "--set", f"data.valid=[{tmp_path}/bad/*.parquet]") == 2
    assert "column 'is_click' holds 2" in capsys.readouterr().err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000009"]


@pytest.mark.parametrize("head", ["aitm", "dbmtl"])
def test_a_child_under_another_parent_starts_without_what_it_read_of_the_old_one(
    head: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"heads": {"kind": head, "tower_hidden": [8]}}
    config = write_job(tmp_path / "job.yaml", data, model=heads, train={"max_steps": 1})
    assert run_cli("train", config, "-o", tmp_path / "old") == 0
    capsys.readouterr()
    again = ["--init-from", tmp_path / "old", "-o", tmp_path / "new", "--set", "tasks.buy.given=like"]
    assert run_cli("train", config, *again) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if "started from" in line)
    if head == "aitm":
        assert "fresh: model.over_arch.heads.transfers.task_buy.hand_on.0.weight" in said
    else:
        assert "grown: model.over_arch.heads.relations.task_buy.net.0.weight (20%)" in said  # 8 of 8 + 32 columns


@pytest.mark.parametrize("how", ["--resume", "restarted"])
def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(
    how: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume, and when torchrun restarts the ranks with the words they were first started with."""
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 2}), tmp_path / "run"
    run.mkdir()
    shutil.copy(config, run / "config.yaml")
    if how == "restarted":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_cli("train", config, "-o", run, *(["--resume"] if how == "--resume" else [])) == 0
    assert "no checkpoint yet, starting from the beginning" in capsys.readouterr().err
    assert run_cli("train", config, "-o", run, "--resume", "--set", "train.max_steps=3") == 0
    assert "resumed after step 2" in capsys.readouterr().err


@pytest.mark.parametrize("sparse", ["rowwise_adagrad", "adagrad"])
@pytest.mark.parametrize(("first", "then"), [("data_parallel", "row_wise"), ("row_wise", "data_parallel")])
def test_a_run_resumes_under_another_plan(first: str, then: str, sparse: str, data: Path, tmp_path: Path) -> None:
    """Optimizer states of replicated and sharded tables have other names and shapes in TorchRec (torchrec#2394)."""

    def plan(kind: str) -> list[str]:
        return ["--set", f"sharding.constraints={{user: {{types: [{kind}]}}, item: {{types: [{kind}]}}}}"]

    config = write_job(tmp_path / "job.yaml", data, optim={"sparse": {"kind": sparse}})
    every = ["--set", "train.checkpoint_every=8", "--set", "train.keep_checkpoints=9"]
    for run, kind in (("changed", first), ("unchanged", first)):
        assert run_cli("train", config, "-o", tmp_path / run, *every, *plan(kind)) == 0
    killed_after(tmp_path / "changed", 8)
    assert run_cli("train", config, "-o", tmp_path / "changed", *every, *plan(then), "--resume") == 0
    assert {table["sharding_type"] for table in json.loads((tmp_path / "changed/plan.json").read_text()).values()} == {
        then
    }
    losses = [[r["loss"] for r in curve(tmp_path / run) if r["kind"] == "train"] for run in ("changed", "unchanged")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_finished_run_resumed_says_its_metrics_once(data: Path, tmp_path: Path) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 3}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    before = curve(run)
    assert run_cli("train", config, "-o", run, "--resume") == 0
    assert curve(run) == before


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    (run / "notes.txt").write_text("mine")
    assert run_cli("train", config, "-o", run, "--overwrite", "--init-from", run) == 2
    assert "is the run that --overwrite would remove" in capsys.readouterr().err
    assert run_cli("train", config, "-o", run, "--overwrite", "--set", "train.max_steps=2") == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    assert (run / "notes.txt").read_text() == "mine"
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    for mistake in (["--set", "data.root=nowhere"], ["--init-from", tmp_path / "nowhere"]):
        assert run_cli("train", run / "config.yaml", "-o", run, "--overwrite", *mistake) == 2
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == saved
        assert (run / "config.yaml").exists()
    (run / "config.yaml").unlink()
    assert run_cli("train", config, "-o", run) == 2  # its checkpoints are still a run


def test_scores_never_land_on_their_input(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    source = tmp_path / "rows" / "x.parquet"
    source.parent.mkdir()
    pq.write_table(toy_table(30), source)
    for given, out in (
        (source, source),
        (source.parent, source.parent / "scores.parquet"),
        (source.parent, source.parent),
    ):
        assert run_cli("predict", run, "--input", given, "-o", out, "--set", "data.keys=[row]") == 2
        assert re.search("write the scores elsewhere|name the file to write", capsys.readouterr().err)
    assert pq.read_table(source).num_rows == 30


def test_an_output_that_is_not_finite_names_task_and_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}, data={"valid": [], "test": []})
    assert run_cli("train", config, "-o", tmp_path / "run", "--set", "optim.dense.lr=1e30") == 0
    assert run_cli("evaluate", tmp_path / "run", "--set", f"data.test=[{data}/test]") == 1
    said = capsys.readouterr().err
    assert re.search("the model's output for click.* is not finite; rows from .*test/part-0.parquet", said)
    assert run_cli("predict", tmp_path / "run", "--input", data / "test", "-o", tmp_path / "scores.parquet") == 1
    assert not (tmp_path / "scores.parquet").exists()


def test_files_may_differ_in_the_width_of_their_integers(tmp_path: Path) -> None:
    root = write_toy(tmp_path / "data")
    table = toy_table(70, seed=3)
    wide = table.set_column(table.column_names.index("item_id"), "item_id", table["item_id"].cast(pa.int64()))
    pq.write_table(wide, root / "train" / "part-7.parquet")
    config = write_job(tmp_path / "job.yaml", root, data={"shuffle": "none", "shuffle_buffer": 1})
    assert run_cli("train", config, "-o", tmp_path / "run") == 0
    assert run_cli("predict", tmp_path / "run", "--input", root / "train", "-o", tmp_path / "scores.parquet") == 0
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 557 + 70


def test_predict_sees_the_columns_of_folders_names(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "valid", "test"):
        for hour in (3, 7):
            (root / split / f"hour={hour}").mkdir(parents=True)
            pq.write_table(toy_table(60, hour), root / split / f"hour={hour}" / "part.parquet")
    tree = toy_tree(root, data={split: [split] for split in ("train", "valid", "test")})
    tree["tables"]["hours"] = {"rows": 24, "dim": 4}
    tree["features"]["sparse"].append({"name": "hour", "table": "hours"})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("train", tmp_path / "job.yaml", "-o", tmp_path / "run", "--set", "train.max_steps=2") == 0
    scores = {}
    for name in ("", "hour=7", "hour=7/part.parquet"):
        out = tmp_path / "scores.parquet"
        assert run_cli("predict", tmp_path / "run", "--input", root / "test" / name, "-o", out) == 0
        table = pq.read_table(out)
        scores[name] = table.filter(pc.equal(table["hour"], 7))
        assert scores[name].num_rows == 60
    assert scores[""] == scores["hour=7"] == scores["hour=7/part.parquet"]


def test_a_run_is_not_overwritten_by_accident(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    assert run_cli("train", config, "-o", run) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run_cli("train", config, "-o", run, "--overwrite") == 0


def test_a_loss_that_is_not_finite_names_step_task_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_toy(tmp_path / "data")
    table = toy_table(64, seed=9)
    ratio = np.where(np.arange(64) == 3, 1e30, np.array(table["watch_ratio"]))  # its square is not float32
    click = pa.array(np.ones(64, bool))
    table = table.set_column(table.column_names.index("watch_ratio"), "watch_ratio", pa.array(ratio))
    table = table.set_column(table.column_names.index("is_click"), "is_click", click)
    pq.write_table(table, root / "train" / "part-9.parquet")
    config = write_job(tmp_path / "job.yaml", root, data={"shuffle": "none"})
    assert run_cli("train", config, "-o", tmp_path / "run") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 9: the loss of ratio is not finite" in said or "step 10: the loss of ratio is not finite" in said
    assert "part-9.parquet" in said


def test_predict_keeps_the_named_keys_only(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    out = tmp_path / "scored.parquet"
    unlabelled = tmp_path / "unlabelled.parquet"
    source = pq.read_table(data / "test").drop_columns(["is_click", "is_buy", "is_like", "watch_ratio", "shown_like"])
    pq.write_table(source, unlabelled)
    assert run_cli("predict", run, "--input", unlabelled, "-o", out, "--set", "data.keys=[row]") == 0
    table = pq.read_table(out)
    assert table.column_names == ["row", "pred_click", "pred_buy", "pred_like", "pred_ratio"]
    assert table["row"].equals(source["row"])
    assert (np.array(table["pred_buy"]) <= np.array(table["pred_click"])).all()
    assert run_cli("predict", run, "--input", out, "-o", out) == 2
    capsys.readouterr()
    assert run_cli("predict", run, "--input", tmp_path / "none", "-o", out) == 2
    assert "no such file or folder" in capsys.readouterr().err
