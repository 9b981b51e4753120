"""A rank that keeps the others waiting is named, with the line of code it stands at."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mtlrec.distributed.liveness import RankMissing
from mtlrec.distributed.process_group import process_group
from tests.jobs import write_job
from tests.ranks import run_cli, run_ranks
from tests.toy import write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TIMEOUT_S = 4


def waiting_for_a_sleeper() -> tuple[str, int]:
    """Three ranks; the second is busy with something else."""
    try:
        with process_group("cpu", TIMEOUT_S) as ranks:
            if ranks.rank == 1:
                oversleep()
            dist.all_reduce(torch.zeros(1))
    except (RankMissing, RuntimeError) as error:
        return str(error), os.getpid()
    return "", os.getpid()


def oversleep() -> None:
    time.sleep(2.5 * TIMEOUT_S)


def test_a_rank_that_is_busy_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    (first, _), _, (third, _) = run_ranks(3, waiting_for_a_sleeper)
    for said in (first, third):
        assert said.startswith("a collective took longer than train.timeout_s (4 s): ")
    assert re.search(r"rank 1 at test_liveness\.py:\d+ \(oversleep\)", first)
    assert re.search(r"rank 0, 2 at \w+\.py:\d+ \(all_reduce\)", capfd.readouterr().err), (
        "said once before it is too late"
    )


def stopped(which: int, step: int, run: Path, *arguments: str | Path) -> tuple[int, int]:
    """The command, on a rank that is frozen (if it is `which`) when so many steps are logged."""

    def watch() -> None:
        log = run / "metrics.jsonl"
        while not (log.exists() and len(log.read_text().splitlines()) >= step):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGSTOP)

    if int(os.environ["RANK"]) == which:
        threading.Thread(target=watch, daemon=True).start()
        Path(run.parent / "victim").write_text(str(os.getpid()))
    status = run_cli(*arguments)
    (run.parent / "ended").touch()
    return status, os.getpid()


def test_a_frozen_rank(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its process is woken when the other has ended: it has a result to bring."""
    config = write_job(
        tmp_path / "job.yaml", write_toy(tmp_path / "data"), train={"epochs": 100, "timeout_s": TIMEOUT_S}
    )
    run = tmp_path / "run"

    def wake() -> None:
        while not (tmp_path / "ended").exists():
            time.sleep(0.05)
        os.kill(int((tmp_path / "victim").read_text()), signal.SIGCONT)

    threading.Thread(target=wake, daemon=True).start()
    (status, _), (_, victim) = run_ranks(2, stopped, 1, 15, run, "train", config, "-o", run)
    assert status == 1
    assert f"rank 1 (process {victim} on " in capfd.readouterr().err.replace("\n", " ")


def test_liveness_costs_nothing_alone() -> None:
    threads = threading.active_count()
    with process_group("cpu", TIMEOUT_S) as ranks:
        ranks.liveness.tick()
        assert threading.active_count() == threads
