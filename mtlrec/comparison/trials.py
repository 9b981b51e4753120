"""Many trainings, several at a time, each a `mtlrec train` in a process of its own; what is finished is not run again.

A trial is one architecture with one factor on the learning rates and one seed. Its run lies below the comparison's
folder, `trials/NAME/lr_FACTOR/seed_N/`, with `result.json` beside it once it has ended.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, Protocol, Self, TextIO, TypeVar

import torch
import yaml

from mtlrec.config import JobConfig
from mtlrec.errors import ConfigError, TrialFailed
from mtlrec.io import write_text
from mtlrec.run_folder import RunFolder

Metrics = dict[str, dict[str, float]]
"""By task, by metric."""


class NamedJob(Protocol):
    """What is trained: a job, and the name that its trainings have."""

    @property
    def name(self) -> str: ...

    @property
    def job(self) -> JobConfig: ...


J = TypeVar("J", bound=NamedJob)


@dataclass(frozen=True)
class Trial:
    candidate: str
    factor: float
    seed: int

    @property
    def folder(self) -> Path:
        short = f"{self.factor:g}"
        return (
            Path(self.candidate) / f"lr_{short if float(short) == self.factor else self.factor}" / f"seed_{self.seed}"
        )

    def __str__(self) -> str:
        return f"{self.candidate}, learning rates x{self.factor:g}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What a trial ended with.

    Attributes:
        metrics: by split, valid and test; NaN what the rows cannot give, as AUC of one class
        samples_per_s: of its training, beside as many others as ran
        diverged: instead of metrics, the line that says so
    """

    metrics: dict[str, Metrics]
    samples_per_s: float
    diverged: str | None = None


class Trials(Generic[J]):
    """The trainings of one comparison; a context manager, within which its folder is this process's alone.

    Args:
        folder: the comparison's
        candidates: whose jobs are trained; written to `jobs/NAME.yaml`
        at_a_time: how many processes; cores, and GPUs where there are some, are shared out among them

    Raises ConfigError where the folder holds another comparison: a job of the same name that is not the same.
    """

    _lock: TextIO

    def __init__(self, folder: Path, candidates: Iterable[J], at_a_time: int) -> None:
        self.folder, self.candidates = folder, {one.name: one for one in candidates}
        self.at_a_time = at_a_time
        folder.mkdir(parents=True, exist_ok=True)
        for one in self.candidates.values():
            path, text = self._job(one.name), yaml.safe_dump(one.job.dump(), sort_keys=False)
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise ConfigError(f"--output {folder}: holds a comparison of another job ({path}); name another folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)

    def __enter__(self) -> Self:
        """Take the folder. Raises TrialFailed if another process holds it, or a training that such a process left."""
        self._lock = (self.folder / ".lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise TrialFailed(
                f"--output {self.folder}: in use by another comparison, or by a training that one left behind; wait "
                "for it, or end it"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def result(self, trial: Trial) -> Result | None:
        """Of a finished trial; None where it has to be trained, again if what it left is not whole."""
        run = self._run(trial)
        try:
            result = Result(**json.loads((run / "result.json").read_text(encoding="utf-8")))
            whole = bool(result.diverged) or {"valid", "test"} <= result.metrics.keys()
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        has_model = trial.seed > 0 or bool(result.diverged) or bool(RunFolder(run).complete_checkpoints())
        return result if whole and has_model else None

    def run(self, trials: Iterable[Trial], ended: Callable[[Trial, Result, bool], None]) -> None:
        """Trains those that are not finished; `ended` is called for every trial, and told whether it was so before.

        Raises TrialFailed where a training does not end as it should; the others are stopped, and a later call goes on.
        """
        missing = []
        for trial in trials:
            before = self.result(trial)
            if before is None:
                missing.append(trial)
            else:
                ended(trial, before, True)
        places: SimpleQueue[int] = SimpleQueue()
        for place in range(self.at_a_time):
            places.put(place)
        running: set[subprocess.Popen[str]] = set()
        with ThreadPoolExecutor(self.at_a_time) as pool:
            waiting = {pool.submit(self._train, trial, places, running): trial for trial in missing}
            try:
                for done in as_completed(waiting):
                    ended(waiting[done], done.result(), False)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(running):
                    process.terminate()
                raise

    def _train(self, trial: Trial, places: SimpleQueue[int], running: set[subprocess.Popen[str]]) -> Result:
        place, run = places.get(), self._run(trial)
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        try:
            with (run / "train.log").open("w", encoding="utf-8") as log:
                process = subprocess.Popen(
                    self._command(trial, run),
                    env=self._environment(place),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    pass_fds=[self._lock.fileno()],
                )
                running.add(process)
                printed, _ = process.communicate()
                running.discard(process)
        finally:
            places.put(place)
        result = self._read(trial, run, process.returncode, printed)
        if trial.seed > 0:
            shutil.rmtree(RunFolder(run).checkpoints, ignore_errors=True)  # tables may fill a disk
        write_text(run / "result.json", json.dumps(vars(result)))
        return result

    def _read(self, trial: Trial, run: Path, status: int, printed: str) -> Result:
        if status or not printed.strip():  # a training that was told to stop ends well, without figures
            said = (run / "train.log").read_text(encoding="utf-8").splitlines()
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            if "is not finite" in last:
                return Result({}, 0.0, diverged=last)
            raise TrialFailed(f"{trial}: ended with status {status}: {last} ({run / 'train.log'})")
        records = [json.loads(line) for line in RunFolder(run).metrics.read_text(encoding="utf-8").splitlines()]
        rates = [one["samples_per_s"] for one in records if one["kind"] == "train" and "samples_per_s" in one]
        metrics = {
            split: {
                task: {name: math.nan if value is None else value for name, value in of.items()}
                for task, of in by.items()
            }
            for split, by in json.loads(printed).items()
        }
        return Result(metrics, len(rates) / sum(1 / rate for rate in rates) if rates else 0.0)

    def _command(self, trial: Trial, run: Path) -> list[str]:
        optim = self.candidates[trial.candidate].job.optim
        overrides = [
            f"train.seed={trial.seed}",
            f"optim.dense.lr={optim.dense.lr * trial.factor!r}",
            f"optim.sparse.lr={optim.sparse.lr * trial.factor!r}",
            "train.keep_checkpoints=1",
            "train.diagnose_every=0",
        ]
        words = [word for one in overrides for word in ("--set", one)]
        return [
            sys.executable,
            "-m",
            "mtlrec",
            "train",
            str(self._job(trial.candidate)),
            "-o",
            str(run),
            "--json",
            *words,
        ]

    def _environment(self, place: int) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.at_a_time)
        more = {"OMP_NUM_THREADS": str(threads)}
        gpus = torch.cuda.device_count()
        if gpus:
            more["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
        return os.environ | more

    def run_of(self, candidate: str, factor: float, seed: int) -> Path:
        """A trial's run, with its checkpoint where the seed is the first."""
        return self._run(Trial(candidate, factor, seed))

    def _run(self, trial: Trial) -> Path:
        return self.folder / "trials" / trial.folder

    def _job(self, name: str) -> Path:
        return self.folder / "jobs" / f"{name}.yaml"
