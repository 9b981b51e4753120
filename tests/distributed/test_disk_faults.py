"""What happens to a run whose disk is full, read-only or gone: it goes on, or ends with a line that says why, and what
was saved before is whole. On real file systems: a small tmpfs that is mounted as checkpoints/, which wants root."""

import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import read_job_state
from tests.support.jobs import curve, final_tensors, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TRAIN = {"epochs": 12, "checkpoint_every": 10, "eval_every": 1000}
"""60 steps."""


def train(fault: str, which: int, run: Path, *arguments: str | Path) -> int:
    """The command; on rank `which` the fault comes as soon as there is a checkpoint."""

    def strike() -> None:
        while not Checkpoints(run).complete():
            time.sleep(0.001)
        checkpoints = run / "checkpoints"
        match fault:
            case "no file over 20 kB":
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            case "full":
                with suppress(OSError), (checkpoints / "somebody_else_s").open("wb", buffering=0) as file:
                    while True:
                        file.write(b"0" * 4096)
            case "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(checkpoints)], check=True)
            case "gone":
                checkpoints.rename(run / "moved")
            case "a file":
                checkpoints.rename(run / "moved")
                checkpoints.write_text("")

    if int(os.environ["RANK"]) == which:
        threading.Thread(target=strike, daemon=True).start()
    return run_cli(*arguments)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A run's folder, whose checkpoints/ is a file system of 4 MB."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs wants root")
    yield folder.parent
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A job, and a run of it on two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("disk")
    config = write_job(folder / "job.yaml", write_toy(folder / "data"), train=TRAIN)
    assert run_ranks(2, run_cli, "train", config, "-o", folder / "whole") == [0, 0]
    return config, folder / "whole"


def check_resumed(config: Path, run: Path, whole: Path) -> None:
    assert run_ranks(2, run_cli, "train", config, "-o", run, "--resume") == [0, 0]
    assert curve(run) == curve(whole)
    wanted = final_tensors(whole)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in final_tensors(run).items())


@pytest.mark.parametrize(
    ("fault", "which", "said"),
    [("full", 0, "No space left on device"), ("read-only", 0, "Read-only file system"), ("full", 1, "No space left")],
)
def test_a_disk_that_fills_up_or_becomes_read_only(
    fault: str, which: int, said: str, job: tuple[Path, Path], small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, whole = job
    assert run_ranks(2, train, fault, which, small_disk, "train", config, "-o", small_disk) == [1, 1]
    assert said in mistakes(capfd.readouterr().err)
    saved = [read_job_state(path).step for path in Checkpoints(small_disk).complete()]
    assert saved
    assert saved[-1] < 60
    assert run_cli("evaluate", small_disk) == 0
    if fault == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk / "checkpoints")], check=True)
    (small_disk / "checkpoints" / "somebody_else_s").unlink(missing_ok=True)
    check_resumed(config, small_disk, whole)


@pytest.mark.parametrize("which", [0, 1])
def test_one_rank_that_cannot_write(
    which: int, job: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, whole = job
    run = tmp_path / "run"
    assert run_ranks(2, train, "no file over 20 kB", which, run, "train", config, "-o", run) == [1, 1]
    assert "File too large; this checkpoint was not saved" in mistakes(capfd.readouterr().err)
    assert Checkpoints(run).complete()
    check_resumed(config, run, whole)


def test_a_folder_that_vanishes_is_made_again(job: tuple[Path, Path], tmp_path: Path) -> None:
    """Or the save that was under way fails, and a resume has nothing to go on from."""
    config, whole = job
    run = tmp_path / "run"
    statuses = run_ranks(2, train, "gone", 0, run, "train", config, "-o", run)
    assert statuses in ([0, 0], [1, 1])
    if statuses == [1, 1]:
        check_resumed(config, run, whole)
    assert curve(run) == curve(whole)


def test_a_folder_that_became_a_file(job: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, whole = job
    run = tmp_path / "run"
    assert run_ranks(2, train, "a file", 0, run, "train", config, "-o", run) == [1, 1]
    assert re.search(r"checkpoints\S*: (Not a directory|File exists)", mistakes(capfd.readouterr().err))
    (run / "checkpoints").unlink()
    (run / "moved").rename(run / "checkpoints")
    check_resumed(config, run, whole)


def mistakes(stderr: str) -> str:
    """What was said; a traceback is not for users."""
    assert "Traceback" not in stderr
    return stderr
