"""Whole jobs on one rank, as a table: train, evaluate, predict, resume; every kind that a config can name.

What must be the same is compared bit by bit: resumed = uninterrupted, and the same seed gives the same curve.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from tests.support.jobs import curve, final_tensors, killed_after, write_job
from tests.support.ranks import run_cli
from tests.support.toy import FUSIONS, toy_table, write_toy

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
        {"name": "age", "transform": ["clip", "standardize"], "min": 20, "max": 60, "mean": 40, "std": 10},
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
    "masknet": {"model": {"bottom": {"kind": "masknet", "block_dim": 16}}},
    "masknet_serial": {"model": {"bottom": {"kind": "masknet", "block_dim": 16, "mode": "serial", "hidden": [16]}}},
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
    "adagrad_sgd": {
        "optim": {
            "sparse": {"kind": "adagrad"},
            "dense": {"kind": "sgd", "lr": 0.1, "decay": "linear", "momentum": 0.9},
        }
    },
    "sgd_adamw_clipped": {
        "optim": {
            "sparse": {"kind": "sgd", "lr": 0.5, "warmup_steps": 3, "decay": "cosine", "min_lr_ratio": 0.1},
            "dense": {"kind": "adamw", "weight_decay": 0.1, "clip_norm": 0.5},
        }
    },
    "every_option_of_an_optimizer": {
        "tables": {"user": {"rows": 50, "dim": 8, "lr": 0.5, "init_std": 0.01}},
        "optim": {
            "sparse": {"eps": 1e-6, "clip_value": 0.01},
            "dense": {"kind": "adam", "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.01},
        },
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
    "checkpoints_in_the_foreground": {"train": {"background_checkpoints": False}},
    "bf16_batch_norm": {"train": {"precision": "bf16"}, "model": {"fusion": FUSIONS["batch_norm"]}},
}


@pytest.mark.parametrize("name", JOBS)
def test_job(name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains; resumes from mid-epoch to bitwise the same end; evaluates to the same metrics; predicts what they say."""
    if name in (*NEEDS_TORCHJD, "bf16_upgrad"):
        pytest.importorskip("torchjd", reason="TorchJD is not installed")
    config, run = write_job(tmp_path / "job.yaml", data, **JOBS[name]), tmp_path / "run"
    every = ["--set", "train.checkpoint_every=6", "--set", "train.keep_checkpoints=9"]
    every += ["--set", "train.diagnose_every=1000"]  # at the end: every kind can be diagnosed
    assert run_cli("train", config, "-o", run, *every, "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    assert all(("gauc" in metrics) == (name == "gauc") for task, metrics in trained["test"].items() if task != "ratio")
    before, weights = curve(run), final_tensors(run)
    assert len([record for record in before if record["kind"] == "train"]) == 18  # 557 rows: 9 steps an epoch, twice

    kept = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert kept == [f"step_{step:08d}" for step in (6, 12, 18)]
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
    # little is learned in 18 steps: predictions lie close together, and AUC's bins hold several of them
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


def test_an_evaluation_in_mid_epoch_leaves_dropout_on(data: Path, tmp_path: Path) -> None:
    config = write_job(tmp_path / "job.yaml", data, model={"fusion": FUSIONS["layer_norm_and_dropout"]})
    for run, every in (("once", 0), ("often", 3)):
        options = ["--set", f"train.eval_every={every}", "--set", "train.epochs=1"]
        assert run_cli("train", config, "-o", tmp_path / run, *options) == 0
    once, often = ([r for r in curve(tmp_path / run) if r["kind"] == "train"] for run in ("once", "often"))
    assert once == often
    assert len([r for r in curve(tmp_path / "often") if r["kind"] == "valid"]) == 3


def test_a_run_folder_holds_what_was_promised(data: Path, tmp_path: Path) -> None:
    config, run = write_job(tmp_path / "job.yaml", data), tmp_path / "run"
    assert run_cli("train", config, "-o", run, "--set", "train.eval_every=5") == 0
    assert {path.name.split(".")[0] for path in run.iterdir()} >= {"config", "plan", "metrics", "events", "checkpoints"}
    assert [record["step"] for record in curve(run) if record["kind"] == "valid"] == [5, 10, 15, 18]
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["world_size"], plan["tables"].keys()) == (1, {"item", "user"})
    rerun = tmp_path / "rerun"
    assert run_cli("train", run / "config.yaml", "-o", rerun) == 0  # the resolved config is a job
    assert [r for r in curve(rerun) if r["kind"] == "train"] == [r for r in curve(run) if r["kind"] == "train"]


def test_masked_features_get_no_gradient(data: Path, tmp_path: Path) -> None:
    """With one task that may not see the users, their table stays as it was initialized."""
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
    "adam on cpu": (["--set", "optim.sparse.kind=adam"], "FBGEMM has none on cpu. Use rowwise_adagrad, adagrad, sgd."),
    "weight decay on cpu": (
        ["--set", "optim.sparse.weight_decay=0.1"],
        "optim.sparse.weight_decay: FBGEMM has none on cpu",
    ),
    "replicated and clipped": (
        ["--set", "optim.sparse.clip_value=1", "--set", "sharding.constraints={item: {types: [data_parallel]}}"],
        "data_parallel does not go with optim.sparse.clip_value",
    ),
    "dot with two widths": (["--set", "model.bottom={kind: dot}", "--set", "tables.item.dim=16"], "dim"),
    "a table that torch cannot name": (["--set", "tables.type={rows: 9, dim: 4}", *TYPE], "tables.type_id"),
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
