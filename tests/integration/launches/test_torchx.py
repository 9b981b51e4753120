"""The real launch: TorchX starts two ranks here, the job is stopped in the middle, and goes on where it was."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import curve, torchx, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def train_lines(run: Path) -> list[dict[str, Any]]:
    return [record for record in curve(run) if record["kind"] == "train"]


def test_stopped_and_resumed_through_torchx(tmp_path: Path) -> None:
    train = {"epochs": 40, "checkpoint_every": 15, "eval_every": 1000}
    config = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data"), train=train)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_ranks(2, run_cli, "train", config, "-o", whole) == [0, 0]

    job = torchx(config, stopped)
    deadline = time.monotonic() + 120
    while steps_logged(stopped) < 40 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert 40 <= steps_logged(stopped) < 200, f"it was to be stopped in the middle:\n{output}"
    saved = max(path.name for path in (stopped / "checkpoints").glob("step_*"))
    assert int(saved.removeprefix("step_")) == steps_logged(stopped), "the signal reaches the ranks, and they save"

    job = torchx(config, stopped, "--resume", "True")
    output, _ = job.communicate(timeout=180)
    assert job.returncode == 0, output
    assert f"resumed after step {int(saved.removeprefix('step_'))}" in output
    assert [line["step"] for line in train_lines(stopped)] == list(range(1, 201))
    assert train_lines(stopped) == train_lines(whole)
    assert curve(stopped)[-1]["kind"] == "test"
    assert json.loads((stopped / "plan.json").read_text()) == json.loads((whole / "plan.json").read_text())


def test_a_user_s_mistake_fails_the_job(tmp_path: Path) -> None:
    config = write_job(tmp_path / "job.yaml", write_toy(tmp_path / "data"))
    job = torchx(config, tmp_path / "run", "tables.item.rows=20")
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "raise tables.item.rows" in output
