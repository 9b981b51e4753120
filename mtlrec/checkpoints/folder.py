"""Saving checkpoints through torch.distributed.checkpoint (DCP). `run_folder.py` says what lies where.

A checkpoint is written beside its place and renamed once it is complete. The last N are kept, and the best.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from mtlrec.checkpoints.job_state import JobState
from mtlrec.compat.dcp.errors import CheckpointException, failure_reason
from mtlrec.compat.dcp.pieces import in_pieces
from mtlrec.compat.dcp.staging import Staging
from mtlrec.config import Judge
from mtlrec.errors import CheckpointError, CheckpointNotSaved, Preempted
from mtlrec.io import sync, write_text
from mtlrec.run_folder import JOB_STATE, VALID_METRICS, WRITING, RunFolder, checkpoint_name, step_of

KEPT = "this checkpoint was not saved, earlier ones are complete. Fix the folder and continue with --resume"
WORST = -math.inf


class Checkpoints:
    """The `checkpoints/` folder of a run.

    Saving in the background copies the tensors and goes on; a thread writes them, talking to the other ranks' threads
    over a process group of its own, because the default one is busy training. At most one is being written.
    """

    def __init__(
        self,
        run: Path,
        keep: int = 2,
        keep_best: Judge | None = None,
        in_background: bool = True,
        timeout_s: int = 300,
    ) -> None:
        self.folder = RunFolder(run).checkpoints
        self.keep, self.keep_best = keep, keep_best
        self.in_background, self._timeout = in_background, timedelta(seconds=timeout_s)
        self._staging = Staging()
        self._group: dist.ProcessGroup | None = None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The other ranks cannot finish what is being written without this one; an error of its own comes first."""
        try:
            self.wait()
        except Exception:
            if kind is None or issubclass(kind, Preempted):
                raise

    def complete(self) -> list[Path]:
        """Oldest first."""
        return RunFolder(self.folder.parent).complete_checkpoints()

    def latest(self) -> Path | None:
        return next(reversed(self.complete()), None)

    def best(self) -> Path | None:
        """The first among equals; a checkpoint that was not evaluated, or without a figure, is not the best."""
        best = max(self.complete(), key=self._score, default=None)
        return best if best is not None and self._score(best) > WORST else None

    def named(self, which: str) -> Path:
        """`last`, `best` or the number of a step. Raises CheckpointError where there is none."""
        match which:
            case "last":
                found = self.latest()
            case "best":
                found = self.best()
            case _:
                found = next((path for path in self.complete() if path.name == f"step_{which:0>8}"), None)
        if found is None:
            there = ", ".join(str(step_of(path)) for path in self.complete())
            what = f"there are those of steps {there}" if there else "train it first"
            hint = "; the best is known where train.keep_best names a metric" if which == "best" and there else ""
            raise CheckpointError(f"{self.folder}: no complete checkpoint '{which}': {what}{hint}")
        return found

    def evaluated(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Collective. Keeps the figures of the valid split with the step's checkpoint; an older best may go."""
        self.wait()
        if dist.get_rank() == 0:
            text = json.dumps({task: {k: v for k, v in of.items() if math.isfinite(v)} for task, of in metrics.items()})
            path = self.folder / checkpoint_name(step) / VALID_METRICS
            try:
                write_text(path, text)
                self._remove_old()
            except OSError as error:
                raise CheckpointNotSaved(
                    f"{path}: {error.strerror}; the checkpoint is whole, its figures were not kept"
                ) from None

    def _score(self, checkpoint: Path) -> float:
        """Higher is better."""
        if self.keep_best is None:
            return WORST
        task, metric, highest_is_best = self.keep_best
        try:
            value = float(json.loads((checkpoint / VALID_METRICS).read_text(encoding="utf-8"))[task][metric])
        except (OSError, ValueError, LookupError, TypeError):
            return WORST
        if not math.isfinite(value):
            return WORST
        return value if highest_is_best else -value

    def save(self, tensors: dict[str, Any], state: JobState) -> None:
        """Collective. On return the tensors may change; `wait` tells when the checkpoint is complete and older ones
        beyond `keep` are gone.

        Raises CheckpointNotSaved where the one before could not be written: it is waited for first.
        """
        self.wait()
        tensors = in_pieces(tensors)
        if not self.in_background:
            self._write(tensors, state)
            return
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        staged = self._staging.staged(tensors)
        self._writing = Future()
        gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        arguments = (self._writing, gpu, self._write, staged, state)
        Thread(target=_run, args=arguments, name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises CheckpointNotSaved if that failed; earlier ones are kept."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, tensors: dict[str, Any], state: JobState) -> None:
        """Collective, over the group if there is one."""
        name = checkpoint_name(state.step)
        writing = self.folder / f"{WRITING}{name}"
        try:
            if dist.get_rank() == 0:
                for left in self.folder.glob(f"{WRITING}*"):
                    shutil.rmtree(left)
                writing.mkdir(parents=True)
            dist.barrier(self._group)
            dcp.save(tensors, storage_writer=FileSystemWriter(writing), process_group=self._group)
            if dist.get_rank() == 0:
                self._complete(writing, name, state)
            dist.barrier(self._group)
        except CheckpointException as error:
            raise CheckpointNotSaved(f"{writing}: {failure_reason(error)}; {KEPT}") from None
        except OSError as error:
            raise CheckpointNotSaved(f"{error.filename or writing}: {error.strerror}; {KEPT}") from None

    def _complete(self, writing: Path, name: str, state: JobState) -> None:
        """Gives what is written its name, which says that it is whole, and removes what it supersedes."""
        write_text(writing / JOB_STATE, state.text())
        sync(writing)
        final = self.folder / name
        if final.exists():
            final.rename(self.folder / f"{WRITING}{name}_before")
        writing.rename(final)
        sync(self.folder)
        for left in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(left)
        self._remove_old()

    def _remove_old(self) -> None:
        best = self.best()
        for old in self.complete()[: -self.keep]:
            if old != best:
                going = self.folder / f"{WRITING}{old.name}_old"  # a name that says it is not whole
                old.rename(going)
                shutil.rmtree(going)


def _run(done: Future[None], gpu: int | None, work: Callable[..., None], *arguments: Any) -> None:
    try:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # a new thread begins on the first one
        work(*arguments)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)
