"""Nothing in a checkpoint's metadata is executed, and what is not a tensor is not loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import JobState, differences, read_job_state
from mtlrec.checkpoints.reader import load_tensors, saved_shapes
from mtlrec.compat.dcp.staging import on_host
from mtlrec.config import Judge
from mtlrec.data.order import Position
from mtlrec.distributed.plans import Plan
from mtlrec.distributed.process_group import process_group
from mtlrec.errors import CheckpointError, CheckpointNotSaved
from mtlrec.evaluation.task_metrics import TaskMetrics
from mtlrec.heads.funnel import HeadOutput, ProbabilityChain
from mtlrec.losses import Binary, LossReport, Regression, TaskLosses
from mtlrec.metrics import JUDGES, directions
from mtlrec.models.train_module import StepOutput
from tests.support.labels import batch_of

AUC, NE = Judge("click", "auc", highest_is_best=True), Judge("click", "ne", highest_is_best=False)


def state(step: int) -> JobState:
    return JobState(step, Position(), "", 1, {}, {"tasks": []}, Plan(world_size=1, tables={}))


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("thing", [Bomb(), {"state_dict_metadata": Bomb()}, print, torch.nn.Linear(1, 1)])
def test_metadata_that_would_run_code_is_refused(thing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(thing))
    with pytest.raises(
        CheckpointError, match=r"\.metadata: not a checkpoint's metadata .*is not allowed in checkpoint metadata"
    ):
        saved_shapes(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_only_tensors_are_loaded(tmp_path: Path) -> None:
    dcp.save({"weight": torch.ones(2), "note": "text"}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CheckpointError, match="holds note, which is no tensor"):
        saved_shapes(tmp_path)


def test_a_missing_or_damaged_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        load_tensors({"weight": torch.ones(2)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"job\.json: not the state of a job"):
        read_job_state(tmp_path)
    for damaged in ("{", "[]", state(3).text().replace('"world_size": 1', '"world_size": "many"')):
        (tmp_path / "job.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"job\.json: not the state of a job"):
            read_job_state(tmp_path)
    (tmp_path / "job.json").write_text(state(3).text())
    assert read_job_state(tmp_path) == state(3)


def test_tensors_come_back_in_place(tmp_path: Path) -> None:
    dcp.save({"model": {"weight": torch.arange(6.0).view(2, 3)}}, checkpoint_id=tmp_path, no_dist=True)
    assert saved_shapes(tmp_path) == {"model.weight": torch.Size([2, 3])}
    weight = torch.zeros(2, 3)
    load_tensors({"model": {"weight": weight}}, tmp_path)
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(CheckpointError, match="Missing key"):
        load_tensors({"model": {"bias": torch.zeros(2)}}, tmp_path)


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step_00000003", "step_00000010", ".writing_step_00000012", "step_00000011"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step_00000011":
            (tmp_path / "checkpoints" / name / "job.json").write_text("{}")
    assert [path.name for path in Checkpoints(tmp_path).complete()] == ["step_00000003", "step_00000010"]


@pytest.mark.parametrize("in_background", [True, False])
def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path, in_background: bool) -> None:
    weight = torch.ones(1000, 1000)
    with process_group("cpu"), Checkpoints(tmp_path, keep=2, in_background=in_background) as checkpoints:
        for step in range(1, 5):
            weight.fill_(step)
            checkpoints.save({"model": {"weight": weight}}, state(step))
            weight.fill_(-1)  # training goes on
    assert [path.name for path in checkpoints.complete()] == ["step_00000003", "step_00000004"]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step_00000003", "step_00000004"]
    for path, step in zip(checkpoints.complete(), (3, 4), strict=True):
        found = torch.zeros(1000, 1000)
        load_tensors({"model": {"weight": found}}, path)
        assert (found == step).all()
        assert read_job_state(path).step == step


def test_a_save_that_fails_is_told_and_the_one_before_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process_group("cpu"):
        checkpoints = Checkpoints(tmp_path)
        tensors = {"model": {"weight": torch.ones(10)}}
        checkpoints.save(tensors, state(1))
        checkpoints.wait()
        folder = tmp_path / "checkpoints" / ".writing_step_00000002"
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left", folder)))
        checkpoints.save(tensors, state(2))
        with pytest.raises(
            CheckpointNotSaved, match=r"No space left; this checkpoint was not saved, earlier ones are complete"
        ):
            checkpoints.save(tensors, state(3))
        monkeypatch.undo()
        checkpoints.save(tensors, state(4))
        checkpoints.wait()
        checkpoints.wait()
    assert [path.name for path in checkpoints.complete()] == ["step_00000001", "step_00000004"]


def saved(run: Path, then: Callable[[], None]) -> None:
    with Checkpoints(run) as checkpoints:
        checkpoints.save({"weight": torch.ones(1)}, state(1))
        then()


def test_an_error_of_training_comes_before_one_of_saving(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    (tmp_path / "checkpoints").write_text("no folder")
    with process_group("cpu"):
        with pytest.raises(ZeroDivisionError):
            saved(tmp_path, fail)
        with pytest.raises(CheckpointNotSaved, match="checkpoints"):
            saved(tmp_path, lambda: None)


def evaluated(run: Path, aucs: list[float], metric: str = AUC) -> Checkpoints:
    with process_group("cpu"), Checkpoints(run, keep=1, keep_best=metric) as checkpoints:
        for step, auc in enumerate(aucs, 1):
            checkpoints.save({"weight": torch.ones(1)}, state(step))
            checkpoints.evaluated(step, {"click": {"auc": auc, "ne": auc}})
    return checkpoints


@pytest.mark.parametrize(
    ("aucs", "metric", "best", "kept"),
    [
        ([0.5, 0.8, 0.7, 0.8, 0.6], AUC, 2, [2, 5]),
        ([0.5, 0.8, 0.7, 0.8, 0.6], NE, 1, [1, 5]),
        ([0.5, 0.6, 0.7], AUC, 3, [3]),
        ([float("nan"), float("nan")], AUC, None, [2]),
    ],
)
def test_the_best_stays(aucs: list[float], metric: str, best: int | None, kept: list[int], tmp_path: Path) -> None:
    checkpoints = evaluated(tmp_path, aucs, metric)
    names = [int(path.name.removeprefix("step_")) for path in checkpoints.complete()]
    assert names == kept
    if best is None:
        with pytest.raises(
            CheckpointError, match="no complete checkpoint 'best': there are those of steps 2; the best"
        ):
            checkpoints.named("best")
    else:
        assert read_job_state(checkpoints.named("best")).step == best
        assert checkpoints.named(str(best)) == checkpoints.best()
    assert read_job_state(checkpoints.named("last")).step == len(aucs)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    for which in ("best", "last", "7", "first"):
        with pytest.raises(CheckpointError, match=f"no complete checkpoint '{which}': train it first"):
            Checkpoints(tmp_path).named(which)
    evaluated(tmp_path, [0.5])
    (tmp_path / "checkpoints" / "step_00000001" / "valid.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"of steps 1$"):
        Checkpoints(tmp_path).named("7")
    assert Checkpoints(tmp_path, keep_best=Judge("click", "auc", True)).best() is None


def test_what_comes_from_gpus_is_staged_in_host_memory() -> None:
    """The metadata alone: no GPU is needed to say where a copy lies."""
    shards = [ShardMetadata([row, 0], [2, 4], f"rank:{rank}/cuda:{rank}") for rank, row in enumerate((0, 2))]
    found = on_host(ShardedTensorMetadata(shards, torch.Size([4, 4]), TensorProperties()))
    assert [str(shard.placement) for shard in found.shards_metadata] == ["rank:0/cpu", "rank:1/cpu"]
    assert [shard.shard_offsets for shard in found.shards_metadata] == [[0, 0], [2, 0]]
    assert (found.size, found.tensor_properties.pin_memory) == (torch.Size([4, 4]), True)
    assert str(shards[0].placement) == "rank:0/cuda:0"


def test_a_copy_that_somebody_made_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("step_00000003", "step_backup", "step_9"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "job.json").write_text("{}")
    assert [path.name for path in Checkpoints(tmp_path).complete()] == ["step_00000003"]


def test_what_a_config_has_otherwise() -> None:
    before = {"train": {"epochs": 6, "seed": 0}, "tasks": ["a"], "old": 1}
    now = {"train": {"epochs": 2, "seed": 0}, "tasks": ["a", "b" * 100], "new": None}
    long = '["a", "' + "b" * 50 + "..."
    assert differences(before, now) == ["train.epochs 6, now 2", f'tasks ["a"], now {long}', "old 1, now null"]
    assert differences(now, now) == []


def test_figures_that_cannot_be_kept(tmp_path: Path) -> None:
    checkpoints = evaluated(tmp_path, [0.5])
    shutil.rmtree(checkpoints.folder)
    with (
        process_group("cpu"),
        pytest.raises(CheckpointNotSaved, match=r"valid\.json: No such file or directory; .*figures were not"),
    ):
        checkpoints.evaluated(1, {"click": {"auc": 0.6}})


def test_the_best_is_the_better_model_by_every_metric(tmp_path: Path) -> None:
    """Predictions that know the labels' probabilities, and others that know nothing."""
    torch.manual_seed(0)
    rows, tasks = 2000, ["click", "buy", "ratio"]
    true, zeros = torch.randn(rows, 3), torch.zeros(3)
    targets = (torch.rand(rows, 3) < true.sigmoid()).float()
    targets[:, 1] *= targets[:, 0]
    targets[:, 2] = true[:, 2] + 0.1 * torch.randn(rows)
    report, batch = LossReport(zeros, zeros, zeros, zeros), batch_of(targets, group_ids=torch.arange(rows) % 50)
    for step, values in ((1, true), (2, torch.randn(rows, 3) + 1)):
        log_p, log_not_p = ProbabilityChain([None, 0, None])(values)
        metrics = TaskMetrics(
            tasks,
            TaskLosses([Binary(), Binary(), Regression()]),
            [False, True, False],
            torch.device("cpu"),
            has_groups=True,
        )
        outputs = HeadOutput(values, log_p, log_not_p, log_p)
        metrics.update(StepOutput(outputs, report, batch))
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text("{}")
        (folder / "valid.json").write_text(json.dumps(metrics.compute()))
    assert JUDGES.keys() >= {"auc", "gauc", "ne", "log_loss", "ece", "entire_auc", "entire_ne", "mse", "mae"}
    for metric, direction in JUDGES.items():
        task = "buy" if metric in directions(True, True, True) else "ratio"
        best = Checkpoints(tmp_path, keep_best=Judge(task, metric, direction == "highest")).best()
        assert best is not None, metric
        assert best.name == "step_00000001", metric


def test_all_is_on_the_disk_before_the_name_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system is told to write, in turn: after a power cut a checkpoint with its name has all of its files."""
    happened: list[int | str] = []  # the inode of what is synced, the new name of what is renamed
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        happened.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def recorded_rename(old: Path, new: Path) -> None:
        happened.append(Path(new).name)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    with process_group("cpu"), Checkpoints(tmp_path, in_background=False) as checkpoints:
        checkpoints.save({"weight": torch.ones(1)}, state(1))
    folder = tmp_path / "checkpoints" / "step_00000001"
    named = happened.index(folder.name)
    before, after = happened[:named], happened[named + 1 :]
    assert {path.stat().st_ino for path in folder.iterdir()} < set(before)
    assert before[-1] == folder.stat().st_ino, "the names of its files come last"
    assert folder.parent.stat().st_ino in after
