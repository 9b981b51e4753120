"""`train.keep_best`: the checkpoint with the best figure of the valid split stays, and can be asked for by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import read_job_state
from mtlrec.config import Judge
from mtlrec.errors import CheckpointNotSaved
from tests.support.jobs import curve, killed_after, write_job
from tests.support.ranks import run_cli, run_ranks

TRAIN = {"epochs": 4, "eval_every": 5, "checkpoint_every": 7, "keep_checkpoints": 1, "keep_best": "click/ne"}


def saved_steps(run: Path) -> list[int]:
    return sorted(read_job_state(path).step for path in (run / "checkpoints").iterdir())


def evaluations(run: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for line in curve(run) if line["kind"] == "valid"}


def metrics_of(run: Path, which: str, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert run_cli("evaluate", run, "--split", "valid", "--checkpoint", which, "--json") == 0
    found = json.loads(capsys.readouterr().out)["valid"]
    return {f"{task}/{name}": value for task, values in found.items() for name, value in values.items()}


@pytest.mark.parametrize(
    "ranks", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.distributed])], ids=["one rank", "two"]
)
def test_the_best_is_kept_and_taken(ranks: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train=TRAIN), tmp_path / "run"
    lrs = ["--set", "optim.dense.lr=0.05", "--set", "optim.sparse.lr=0.5"]  # so high that the best is not the last
    lrs += ["--set", f"train.epochs={4 * ranks}"]
    assert run_ranks(ranks, run_cli, "train", config, "-o", run, *lrs) == [0] * ranks
    figures = {step: line["click/ne"] for step, line in evaluations(run).items()}
    best, last = min(figures, key=figures.__getitem__), max(figures)
    assert best < last
    assert saved_steps(run) == [best, last]
    for which, step in (("best", best), ("last", last), (str(best), best)):
        found, wanted = metrics_of(run, which, capsys), evaluations(run)[step]
        assert found["click/ne"] == pytest.approx(wanted["click/ne"], rel=1e-5)
        assert found["buy/log_loss"] == pytest.approx(wanted["buy/log_loss"], rel=1e-5)
    rows = data / "test"
    for which in ("best", "last"):
        assert run_cli("predict", run, "--input", rows, "-o", tmp_path / f"{which}.parquet", "--checkpoint", which) == 0
    assert (tmp_path / "best.parquet").read_bytes() != (tmp_path / "last.parquet").read_bytes()


def test_a_resumed_run_keeps_the_same_best(data: Path, tmp_path: Path) -> None:
    config = write_job(tmp_path / "job.yaml", data, train=TRAIN | {"keep_checkpoints": 99})
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, run):
        assert run_cli("train", config, "-o", folder, "--set", "train.keep_checkpoints=99") == 0
    killed_after(run, 14)
    assert run_cli("train", config, "-o", run, "--resume", "--set", "train.keep_checkpoints=1") == 0
    figures = {step: line["click/ne"] for step, line in evaluations(whole).items()}
    assert curve(run) == curve(whole)
    assert saved_steps(run) == sorted({min(figures, key=figures.__getitem__), max(figures)})


def test_figures_that_were_not_kept_are_made_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while the figures of its first evaluation are written: the log must not say that it was done."""
    config = write_job(tmp_path / "job.yaml", data, train=TRAIN)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert run_cli("train", config, "-o", whole) == 0

    def fail(*_: Any) -> None:
        raise CheckpointNotSaved("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "evaluated", fail)
        assert run_cli("train", config, "-o", run) == 1
    assert (saved_steps(run), evaluations(run)) == ([5], {})
    assert run_cli("train", config, "-o", run, "--resume") == 0
    assert curve(run) == curve(whole)
    assert saved_steps(run) == saved_steps(whole)
    assert Checkpoints(run, keep_best=Judge("click", "ne", False)).best() is not None


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("clicks/auc", "train.keep_best = 'clicks/auc'"),
        ("auc", "wants TASK/METRIC, as in click/auc; tasks are click, buy, like, ratio"),
        ("ratio/auc", "'auc' cannot be had of ratio; there are mse, mae"),
        ("click/entire_auc", "'entire_auc' cannot be had of click; there are auc, ne, log_loss, ece"),
        (
            "buy/gauc",
            "'gauc' cannot be had of buy; there are auc, ne, log_loss, ece, entire_auc, entire_ne, entire_ece",
        ),
    ],
)
def test_a_figure_that_there_is_not(
    wanted: str, said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_job(tmp_path / "job.yaml", data, train={"keep_best": wanted})
    assert run_cli("train", config, "-o", tmp_path / "run") == 2
    assert said in capsys.readouterr().err


def test_the_best_wants_a_valid_split(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path / "job.yaml", data, train={"keep_best": "click/auc"})
    assert run_cli("train", config, "-o", tmp_path / "run", "--set", "data.valid=[]") == 2
    assert "name its files in data.valid" in capsys.readouterr().err
