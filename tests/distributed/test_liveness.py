"""A rank that keeps the others waiting is named, with the line of code it stands at."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mtlrec.distributed.process_group import process_group
from mtlrec.errors import RankMissing
from tests.support.jobs import write_job
from tests.support.ranks import free_port, run_ranks
from tests.support.toy import write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TIMEOUT_S = 6


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
    time.sleep(1.7 * TIMEOUT_S)


def test_a_rank_that_is_busy_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    (first, _), _, (third, _) = run_ranks(3, waiting_for_a_sleeper)
    for said in (first, third):
        assert said.startswith("a collective took longer than train.timeout_s (6 s): ")
    warned = capfd.readouterr().err
    for said in (first, third, warned):
        assert re.search(r"rank 1 at test_liveness\.py:\d+ \(oversleep\)", said)
        assert re.search(r"rank 0, 2 at \w+\.py:\d+ \(all_reduce\)", said)
        assert "has ended" not in said
    waited = re.search(r"no step for (\d+) s", warned)
    assert waited is not None
    assert int(waited[1]) < TIMEOUT_S, "a warning must come before it is too late"


def start(rank: int, run: Path, config: Path, port: int) -> subprocess.Popen[str]:
    """One of two ranks, without torchrun: rank 0 has the store."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "mtlrec", "train", str(config), "-o", str(run)]
    strings = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(command, env=os.environ | strings, text=True, stderr=subprocess.PIPE)


OTHER = pytest.mark.nightly(reason="twenty seconds of waiting; rank 0, whose store freezes with it, is the harder one")


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=OTHER)])
def test_a_frozen_rank(which: int, tmp_path: Path) -> None:
    train = {"epochs": 100, "timeout_s": TIMEOUT_S, "checkpoint_every": 1000, "eval_every": 1000}
    config = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data"), train=train)
    run, port = tmp_path / "run", free_port()
    ranks = [start(rank, run, config, port) for rank in range(2)]
    try:
        log = run / "metrics.jsonl"
        while not (log.exists() and len(log.read_text().splitlines()) >= 15):
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.02)
        ranks[which].send_signal(signal.SIGSTOP)
        _, said = ranks[1 - which].communicate(timeout=100)
        assert ranks[1 - which].returncode == 1
    finally:
        for rank in ranks:
            rank.kill()
    if which == 1:
        frozen = rf"rank 1 \(process {ranks[1].pid} on \S+\) does not answer"
        assert re.search(rf"train.timeout_s \(6 s\): {frozen}; rank 0 at \w+\.py:\d+ \(\w+\) in ", said)
        assert "rank 0 at liveness.py" not in said
    else:
        assert "the store that the ranks share, rank 0's or torchrun's, does not answer" in said


def test_liveness_costs_nothing_alone() -> None:
    threads = threading.active_count()
    with process_group("cpu", TIMEOUT_S) as ranks:
        ranks.liveness.tick()
        assert threading.active_count() == threads
