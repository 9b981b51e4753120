"""Runs that go on: resumed after a kill, on other data, another plan or other tasks; warm-started; overwritten."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.support.jobs import curve, final_tensors, killed_after, write_job
from tests.support.ranks import run_cli
from tests.support.toy import FUSIONS, toy_table, toy_tree, write_toy


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


def test_a_table_more_than_the_checkpoint_has(
    mid_epoch: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = mid_epoch
    tree = yaml.safe_load(config.read_text())
    tree["tables"]["more"] = {"rows": 50, "dim": 8}
    tree["features"]["sparse"].append({"name": "again", "column": "user_id", "table": "more"})
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("train", tmp_path / "more.yaml", "-o", run, "--resume") == 2
    assert "--init-from" in capsys.readouterr().err


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


@pytest.mark.parametrize("how", ["--resume", "restarted"])
def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(
    how: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume, and when torchrun restarts the ranks with the words they were first started with."""
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 2}), tmp_path / "run"
    run.mkdir()
    shutil.copy(config, run / "config.yaml")
    if how == "restarted":
        (run / ".launch").write_text("launch-1")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch-1")
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
    plan = json.loads((tmp_path / "changed/plan.json").read_text())
    assert {table["sharding_type"] for table in plan["tables"].values()} == {then}
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


def test_a_run_is_not_overwritten_by_accident(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    assert run_cli("train", config, "-o", run) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert run_cli("train", config, "-o", run, "--overwrite") == 0


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
    loaded, grown, fresh = re.split("; (?:grown|fresh): ", said)
    assert "unused" not in fresh
    assert "parameters loaded" in loaded
    assert "model.sparse_arch.collections.bags.embedding_bags.item.weight (40 -> 60 rows)" in grown
    assert "model.over_arch.bottom.mlp.net.0.weight (87%)" in grown  # 26 of 30 columns
    assert "model.over_arch.fusion.levels.0.experts.layers.0.weight (75%)" in grown  # three of four tasks
    assert "model.sparse_arch.collections.bags.embedding_bags.hour.weight" in fresh
    assert "model.over_arch.heads.towers.logits.weight (75%)" in grown
    assert "heads" not in fresh
    before, after = final_tensors(old), final_tensors(new)
    item = "model.model.sparse_arch.collections.bags.embedding_bags.item.weight"
    torch.testing.assert_close(after[item][:40], before[item], atol=1e-6, rtol=0)
    assert after[item][40:].abs().sum() > 0
    logits = "model.model.over_arch.heads.towers.logits.weight"
    for task in range(4):
        is_equal = torch.allclose(after[logits][task], before[logits][task], atol=1e-6, rtol=0)
        assert is_equal == (task != 2), "share is new in like's place"


def test_warm_start_takes_a_table_whose_ids_now_have_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is in another collection than before."""
    old, new, stop = tmp_path / "old", tmp_path / "new", {"max_steps": 1}
    assert run_cli("train", write_job(tmp_path / "old.yaml", data, train=stop), "-o", old) == 0
    tree = toy_tree(data, train=stop, optim={"sparse": {"lr": 1e-12}, "dense": {"lr": 1e-12}})
    tree["features"]["sparse"][2]["weights"] = "recent_weights"
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    assert run_cli("train", tmp_path / "new.yaml", "-o", new, "--init-from", old) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if "started from" in line)
    assert not re.search("grown|fresh|unused", said)
    name = "model.model.sparse_arch.collections.{}.embedding_bags.item.weight"
    before, after = final_tensors(old)[name.format("bags")], final_tensors(new)[name.format("weighted_bags")]
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("run_id", ["launch-2", "none"])
def test_a_restart_does_not_go_on_with_the_run_of_another_launch(
    run_id: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun starts the ranks again when one of them refused: the second time must be a refusal too."""
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 2}), tmp_path / "run"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch-1")
    assert run_cli("train", config, "-o", run) == 0
    before = final_tensors(run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_cli("train", config, "-o", run, "--set", "train.max_steps=5") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert all(torch.equal(tensor, before[name]) for name, tensor in final_tensors(run).items())
    assert run_cli("train", config, "-o", run, "--overwrite", "--resume") == 2
    assert "take one of them" in capsys.readouterr().err


def test_a_resume_says_what_is_otherwise_and_keeps_the_best(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"epochs": 3, "keep_best": "click/ne", "keep_checkpoints": 1}
    config, run = write_job(tmp_path / "job.yaml", data, train=train), tmp_path / "run"
    high = ["--set", "optim.dense.lr=0.02", "--set", "optim.sparse.lr=2"]
    assert run_cli("train", config, "-o", run, *high) == 0
    assert "best by click/ne: step_" in capsys.readouterr().err
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(kept) == 2
    forgotten = ["--set", "train.keep_best=null", "--set", "train.epochs=4"]
    worse = ["--set", "optim.dense.lr=1", "--set", "optim.sparse.lr=20"]
    assert run_cli("train", config, "-o", run, "--resume", *worse, *forgotten) == 0
    said = capsys.readouterr().err
    assert "changed since: train.epochs 3, now 4" in said
    assert 'changed since: train.keep_best "click/ne", now null' in said
    assert kept[0] in [path.name for path in (run / "checkpoints").iterdir()]
    assert run_cli("evaluate", run, "--checkpoint", "best") == 0


def test_a_mistake_is_a_line_and_no_abort(data: Path, tmp_path: Path) -> None:
    """In a process of its own, which ends: also found when rows are being read, and started as torchrun does."""
    config, run = write_job(tmp_path / "job.yaml", data), tmp_path / "run"
    command = [sys.executable, "-m", "mtlrec", "train", config, "-o", run]
    wrong = subprocess.run([*command, "--set", "sharding.plan=nowhere"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "mtlrec: sharding.plan: nowhere: No such file or directory\n")
    run.mkdir(exist_ok=True)
    (run / "config.yaml").touch()
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "already holds a run" in refused.stderr
