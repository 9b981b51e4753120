"""The folder of a run: every name in it, and which launch may write to it.

config.yaml              the resolved job, which `mtlrec train` runs again
plan.json                the sharding plan
data/                    the splits that `mtlrec.train` was given as tables or data frames
.data_before/            the data of the run that is being overwritten, until the new job is known to work
metrics.jsonl            one line per logged step and per evaluation
events.out.tfevents.*    the same for TensorBoard
.launch                  the launch that began the run: only its own restarts continue it unasked
checkpoints/
    step_00000400/       the tensors, and beside them:
        job.json             step, position in the data, config, plan
        valid.json           metrics of the valid split, once evaluated
        calibration.json     fitted by `mtlrec evaluate --calibrate`
        fused_score.json     searched by `mtlrec evaluate --rank-metric`
    .writing_*           what a crash left; the next save removes it
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mtlrec.errors import ConfigError

JOB_STATE = "job.json"
VALID_METRICS = "valid.json"
CALIBRATION = "calibration.json"
FUSED_SCORE = "fused_score.json"
WRITING = ".writing_"
"""Begins the name of a checkpoint that is not complete."""


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def complete_checkpoints(self) -> list[Path]:
        """Oldest first. A folder with its final name is complete, because the rename comes last."""
        folders = self.checkpoints.glob("step_*")
        return sorted(
            path for path in folders if re.fullmatch(r"step_\d{8,}", path.name) and (path / JOB_STATE).is_file()
        )

    # ---- who may write here

    def prepare(self, resume: bool, restarted: bool, overwrite: bool, init_from: Path | None) -> bool:
        """Make the folder and return whether to resume. Removes nothing yet: the job is not known to work.

        Args:
            restarted: whether a launcher restarted this process; its own run is then resumed unasked

        Raises ConfigError where the folder holds a run and neither resume nor overwrite was asked for.
        """
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite: take one of them (--max_retries of a launch implies --resume)")
        if restarted and self._mark.is_file() and self._mark.read_text(encoding="utf-8") == _launch():
            return True
        if any(path.exists() and not path.is_dir() for path in (self.path, self.checkpoints)):
            raise ConfigError(f"--output {self.path}: is a file, or its checkpoints are; name a folder")
        if not resume and (self._written_files() or self.config.exists()):
            if not overwrite:
                raise ConfigError(
                    f"--output {self.path}: already holds a run; --resume continues it, --overwrite removes it"
                )
            if init_from is not None and init_from.resolve() == self.path.resolve():
                raise ConfigError(
                    f"--init-from {init_from}: is the run that --overwrite would remove; name another --output"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        return resume

    def mark(self) -> None:
        """Remember the launch that began the run."""
        self._mark.write_text(_launch(), encoding="utf-8")

    def set_data_aside(self) -> None:
        """Make room for other data. `restore_data` undoes it, `clear` makes it final."""
        if self._data_before.exists():  # a launch that was killed before it knew
            shutil.rmtree(self.data, ignore_errors=True)
        elif self.data.exists():
            self.data.rename(self._data_before)

    def restore_data(self) -> None:
        """Put the data back that was set aside, unless `clear` has removed it."""
        if self._data_before.exists():
            shutil.rmtree(self.data, ignore_errors=True)
            self._data_before.rename(self.data)

    def clear(self) -> None:
        """Remove what a run wrote. config.yaml stays until it is replaced, data/ because the new job may name it."""
        shutil.rmtree(self._data_before, ignore_errors=True)
        for path in self._written_files():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @property
    def _data_before(self) -> Path:
        return self.path / ".data_before"

    @property
    def _mark(self) -> Path:
        return self.path / ".launch"

    def _written_files(self) -> list[Path]:
        named = [path for path in (self.plan, self.metrics) if path.exists()]
        events = self.path.glob("events.out.tfevents.*")
        return [*named, *events, *self.checkpoints.glob("step_*"), *self.checkpoints.glob(f"{WRITING}*")]


def _launch() -> str:
    """What torchrun's ranks have in common with those that it starts in their stead, and with no others."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run_id if run_id != "none" else f"{platform.node()} {os.getppid()}"
