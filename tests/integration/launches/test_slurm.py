"""The launch on a real Slurm of two nodes: cancelled, requeued, a rank killed. Skipped where no cluster answers.

`make test-slurm` starts one on this machine (`tests/slurm/cluster.sh`) and stops it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import curve, final_tensors, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy

REPO = Path(__file__).parents[3]
STEPS = 200  # 5 a pass


def why_not() -> str | None:
    if shutil.which("sinfo") is None:
        return "no Slurm here: sinfo is not on PATH"
    try:
        asked = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return "sinfo does not answer"
    if asked.returncode:
        return f"sinfo: {asked.stderr.strip()}"
    return None if len(set(asked.stdout.split())) >= 2 else "the cluster has fewer than two nodes"


NO_CLUSTER = why_not()
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(NO_CLUSTER is not None, reason=str(NO_CLUSTER)),
]


def command(*words: str | Path, cwd: Path = REPO, check: bool = True) -> str:
    """What it wrote to stdout; its stderr is in the error."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, text=True, capture_output=True, timeout=60
    )
    assert not check or done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout if check else done.stdout + done.stderr


class Job:
    """A job submitted through TorchX from the repository's root, where its logs lie then."""

    def __init__(self, config: Path, run: Path, *options: str) -> None:
        words = ["torchx", "run", "-s", "slurm", "launch/components.py:train", "--config", config, "--output", run]
        words += ["--nodes", "2", "--procs_per_node", "1", "--threads", "1", "--resource", "cpu_small", *options]
        said = command(*words)
        found = re.search(r"slurm://torchx/(\d+)", said)
        assert found, said
        self.id, self.handle, self.run = found[1], found[0], run
        self.since = time.monotonic()

    def states(self) -> list[str]:
        """Of the components that squeue knows: empty once the job is gone."""
        return command("squeue", "-h", "-j", self.id, "-o", "%T", check=False).split()

    def accounted(self) -> dict[str, str]:
        """sacct's last word on each component, without the UID of who cancelled."""
        rows = command("sacct", "-nXP", "-j", self.id, "-o", "jobid,state").splitlines()
        return {name: state.split()[0] for name, state in (row.split("|") for row in rows)}

    def history(self) -> list[str]:
        return command("sacct", "-DnXP", "-j", self.id, "-o", "state").split("\n")[:-1]

    def steps(self) -> int:
        log = self.run / "metrics.jsonl"
        return len(re.findall('"kind": "train"', log.read_text())) if log.exists() else 0

    def saved(self) -> int:
        """The step of its last checkpoint."""
        return max((int(path.name[5:]) for path in (self.run / "checkpoints").glob("step_*")), default=0)

    def ranks(self) -> dict[int, int]:
        """Processes of mtlrec by rank; not torchrun, whose command line holds the same words."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                environment = (folder / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.run) in words and "mtlrec" in words and not any("torchrun" in word for word in words):
                rank = next((word for word in environment if word.startswith("RANK=")), "RANK=-1")
                found[int(rank.removeprefix("RANK="))] = int(folder.name)
        return found

    def anybody(self) -> list[str]:
        """Every process that has the run's folder on its command line."""
        lines = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
        return [line for line in lines if str(self.run) in line]

    def wait(self, until: Callable[[], Any], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s\n{self.explain()}"
            time.sleep(0.2)
        print(f"  {time.monotonic() - self.since:5.1f} s: {what}", flush=True)

    def gone(self) -> bool:
        return not self.states()

    def wait_for_the_end(self, seconds: float, what: str = "end") -> None:
        """Accounting hears of it a little later than the queue."""
        self.wait(self.gone, seconds, what)
        self.wait(lambda: "RUNNING" not in self.history(), 20, "accounted")

    def explain(self) -> str:
        logs = [f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(REPO.glob(f"slurm-{self.id}*"))]
        return "\n".join([command("squeue", check=False), command("sacct", "-D", "-j", self.id, check=False), *logs])

    def nudge(self) -> None:
        """Slurm 22.05's backfill looks at its queue again only when a job or a node has changed, and that the time of a
        requeued heterogeneous job has come is no change: on an idle cluster it waits until somebody submits one."""
        if set(self.states()) == {"PENDING"}:
            command("scontrol", "update", f"jobid={self.id}", "comment=nudged", check=False)

    def clean(self) -> None:
        command("scancel", "--quiet", self.id, check=False)
        end = time.monotonic() + 45
        while not self.gone() and time.monotonic() < end:
            time.sleep(0.2)
        for path in REPO.glob(f"slurm-{self.id}*"):
            path.unlink()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    train = {"epochs": STEPS // 5, "checkpoint_every": 15, "eval_every": 1000}
    return write_job(folder / "job.yaml", write_toy(folder / "data"), train=train)


def on_a_node_of_its_own(*arguments: str | Path) -> int:
    """TorchRec's plan depends on which ranks share a node, and the initial weights on the plan."""
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return run_cli(*arguments)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The same job, undisturbed, on two ranks without Slurm."""
    run = config.parent / "whole"
    assert run_ranks(2, on_a_node_of_its_own, "train", config, "-o", run) == [0, 0]
    return run


@pytest.fixture
def submit(config: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def submitted(*options: str, name: str = "run") -> Job:
        jobs.append(Job(config, tmp_path / name, *options))
        return jobs[-1]

    yield submitted
    for job in jobs:
        job.clean()


def check_same(run: Path, whole: Path) -> None:
    assert curve(run) == curve(whole)
    assert json.loads((run / "plan.json").read_text()) == json.loads((whole / "plan.json").read_text())
    expected, found = final_tensors(whole), final_tensors(run)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def in_the_middle(job: Job) -> None:
    job.wait(lambda: job.steps() >= 40 or job.gone(), 120, "40 steps")
    assert 40 <= job.steps() < STEPS - 20, job.explain()


def test_trains_on_two_nodes(submit: Callable[..., Job], whole: Path) -> None:
    job = submit()
    job.wait(lambda: job.steps() >= 1 or job.gone(), 120, "first step")
    status = command("torchx", "status", job.handle)
    assert re.search(r"State: RUNNING", status), status
    nodes = command("squeue", "-h", "-j", job.id, "-o", "%N").split()
    assert len(set(nodes)) == 2
    job.wait_for_the_end(120)
    status = command("torchx", "status", job.handle)
    assert re.search(r"State: SUCCEEDED", status), job.explain()
    assert len(re.findall(r"trainer\[\d\]:SUCCEEDED", status)) == 2
    # The lines of training are stderr's, the tables stdout's; rank 0 may be on either node.
    lines = command("torchx", "log", job.handle)
    assert re.search(rf"trainer/[01] \[0\]:step {STEPS}/{STEPS}", lines), lines
    assert "undecidable" in command("torchx", "log", "--streams", "stdout", job.handle)
    check_same(job.run, whole)


def test_cancelled_and_resumed(submit: Callable[..., Job], whole: Path) -> None:
    job = submit()
    in_the_middle(job)
    command("torchx", "cancel", job.handle)
    job.wait_for_the_end(60, "gone after torchx cancel")
    job.wait(lambda: not job.anybody(), 5, "no process left")
    stopped = job.steps()
    assert stopped < STEPS, "it was to be cancelled in the middle"
    assert job.saved() == stopped, f"SIGTERM reaches the ranks, and they save\n{job.explain()}"
    assert set(job.accounted().values()) == {"CANCELLED"}
    # TorchX 0.7 cannot read sacct's "CANCELLED by 0". When this fails, launch/README.md is to be mended.
    assert "failed to translate slurm state CANCELLED by" in command("torchx", "status", job.handle, check=False)

    again = submit("--resume", "True")
    again.wait_for_the_end(180)
    assert f"resumed after step {stopped}" in command("torchx", "log", again.handle)
    check_same(again.run, whole)


def test_requeued_and_resumed_by_itself(submit: Callable[..., Job], whole: Path) -> None:
    job = submit("--max_retries", "1")
    in_the_middle(job)
    command("scontrol", "requeue", job.id)
    finish_requeued(job, whole)


def test_a_rank_killed_is_requeued_by_max_retries(submit: Callable[..., Job], whole: Path) -> None:
    job = submit("--max_retries", "1")
    in_the_middle(job)
    os.kill(job.ranks()[0], signal.SIGKILL)
    finish_requeued(job, whole)


def finish_requeued(job: Job, whole: Path) -> None:
    job.wait(lambda: "PENDING" in job.states() or job.gone(), 90, "pending again")
    assert not job.gone(), job.explain()
    job.wait(lambda: set(job.states()) == {"PENDING"} and not job.anybody(), 60, "no process left")
    stopped, saved = job.steps(), job.saved()
    print(f"          {stopped} steps logged, {saved} saved", flush=True)
    assert 15 <= saved < STEPS

    def runs() -> bool:
        job.nudge()
        return "PENDING" not in job.states()

    job.wait(runs, 200, "runs again")
    job.wait(lambda: job.gone() or job.steps() > stopped, 90, "steps again")
    job.wait_for_the_end(120)
    assert set(job.accounted().values()) == {"COMPLETED"}, job.explain()
    assert "REQUEUED" in job.history()
    assert re.search(r"State: SUCCEEDED", command("torchx", "status", job.handle))
    assert f"resumed after step {saved}" in command("torchx", "log", job.handle), job.explain()
    check_same(job.run, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_is_restarted_by_torchrun(rank: int, submit: Callable[..., Job], whole: Path) -> None:
    """Without --resume: a restart finds its own run. Its agent counts the restart, the other may not."""
    job = submit("--max_restarts", "1")
    in_the_middle(job)
    before = job.ranks()
    os.kill(before[rank], signal.SIGKILL)
    job.wait(lambda: len(set(job.ranks().values()) - set(before.values())) == 2 or job.gone(), 90, "two new ranks")
    job.wait_for_the_end(180)
    assert job.history() == ["COMPLETED", "COMPLETED"], job.explain()
    assert re.search(r"resumed after step \d+", command("torchx", "log", job.handle)), job.explain()
    check_same(job.run, whole)
