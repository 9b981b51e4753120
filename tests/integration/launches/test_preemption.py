"""SIGTERM on any rank: all save after the same step and end with status 0; a resume goes on as if nothing had been."""

import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlrec.checkpoints.job_state import read_job_state
from mtlrec.evaluation import evaluate
from mtlrec.evaluation.evaluate import check_finite
from tests.support.jobs import curve, final_tensors, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def terminated(which: int, step: int, during: str, run: Path, *arguments: str | Path) -> int:
    """The command, on a rank that gets SIGTERM twice within milliseconds (if it is `which`): when so many steps are
    logged, or in the second batch of the first evaluation."""
    done, asked = threading.Event(), threading.Event()

    def ask() -> None:
        asked.set()
        for _ in range(2):  # as from a scheduler and from torchrun
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.003)

    def watch() -> None:
        log = run / "metrics.jsonl"
        while not done.is_set():
            if log.exists() and len(log.read_text().splitlines()) >= step:
                ask()
                return
            time.sleep(0.002)

    batches = itertools.count(1)

    def checked(*values: Any) -> None:
        if next(batches) == 2 and not asked.is_set():
            ask()
        check_finite(*values)

    if int(os.environ["RANK"]) == which:
        if during == "training":
            threading.Thread(target=watch, daemon=True).start()
        else:
            evaluate.check_finite = checked
    try:
        return run_cli(*arguments)
    finally:
        done.set()


Job = Callable[[int, int], tuple[Path, Path]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """For a number of ranks and an `eval_every`: a job of 60 steps, and a run of it that nothing stopped."""
    root = write_toy(tmp_path_factory.mktemp("preemption") / "data")

    @functools.cache
    def job_and_run(ranks: int, eval_every: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("whole")
        train = {"max_steps": 60, "epochs": 99, "checkpoint_every": 1000, "eval_every": eval_every}
        data = {"valid": ["train/*.parquet"], "batch_size": 16 // ranks}
        config = write_job(folder / "job.yaml", root, train=train, data=data)
        assert run_ranks(ranks, run_cli, "train", config, "-o", folder / "run") == [0] * ranks
        return config, folder / "run"

    return job_and_run


@pytest.mark.parametrize(
    ("ranks", "which", "during"),
    [
        (1, 0, "training"),
        (2, 0, "training"),
        (2, 1, "training"),
        (1, 0, "an evaluation"),
        (2, 1, "an evaluation"),
        (2, 0, "the last evaluation"),
    ],
)
def test_stopped_by_a_signal_and_resumed(
    ranks: int, which: int, during: str, job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The evaluation that was cut short is made again."""
    after = {"training": 17, "an evaluation": 17, "the last evaluation": 60}[during]
    config, whole = job(ranks, 17 if during == "an evaluation" else 1000)
    run = tmp_path / "run"
    capfd.readouterr()
    assert run_ranks(ranks, terminated, which, after, during, run, "train", config, "-o", run) == [0] * ranks
    (saved,) = (run / "checkpoints").iterdir()
    step = read_job_state(saved).step
    assert after <= step
    assert (step == after) == (during != "training")
    assert [line["step"] for line in curve(run)] == list(range(1, step + 1))
    said = capfd.readouterr().err
    assert said.count(f"stopped after step {step} as SIGTERM asked; --resume goes on from there") == 1
    assert run_ranks(ranks, run_cli, "train", config, "-o", run, "--resume") == [0] * ranks
    assert curve(run) == curve(whole)
    expected = final_tensors(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final_tensors(run).items())
