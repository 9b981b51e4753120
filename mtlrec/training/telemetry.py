"""The log of a training: a progress bar or lines, `metrics.jsonl`, TensorBoard events. Only the first rank writes."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from mtlrec.distributed.process_group import Ranks
from mtlrec.io import jsonable, write_text
from mtlrec.metrics import Metrics
from mtlrec.metrics.text import flatten, metrics_line
from mtlrec.models.train_module import StepOutput
from mtlrec.run_folder import RunFolder
from mtlrec.training.optim import learning_rate
from mtlrec.training.progress import bar_console
from mtlrec.training.trainer import Callback, Trainer

logger = logging.getLogger(__name__)


class Telemetry(Callback):
    """The log of one run: metrics.jsonl, TensorBoard events, a progress bar or lines. Only the first rank writes."""

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self.run, self.active = run, ranks.is_first
        self._path = RunFolder(run).metrics
        self._open = ExitStack()
        self._bar: Progress | None = None

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def on_start(self, trainer: Trainer) -> None:
        self.open(trainer.step, trainer.total_steps)
        self._start_interval(trainer)

    def open(self, step: int, total_steps: int) -> None:
        """Continue the log after `step` steps; what it has of later ones is dropped."""
        if not self.active:
            return
        self._file = self._open.enter_context(_open_log(self._path, step, total_steps))
        self._board = self._open.enter_context(SummaryWriter(str(self.run), purge_step=step + 1 if step else None))
        console = bar_console()
        if console is not None:
            self._bar = self._open.enter_context(_bar(console))
            self._task = self._bar.add_task("train", total=total_steps, completed=step, status="")
        self._first_step, self._started = step, time.perf_counter()

    def has(self, step: int, kind: str) -> bool:
        """Whether the log has such a line. Those after the checkpoint were dropped when it was opened."""
        lines = (json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines())
        return any((line["step"], line["kind"]) == (step, kind) for line in lines)

    def after_step(self, trainer: Trainer, output: StepOutput) -> None:
        is_due = trainer.step % trainer.job.train.log_every == 0 or trainer.step == trainer.total_steps
        if self.active and is_due:
            values = step_values(trainer, output) | self._rates(trainer)
            self._start_interval(trainer)
            self._write({"step": trainer.step, "kind": "train", **values})
            self._show_step(trainer, values)

    def after_evaluation(self, trainer: Trainer, split: str, metrics: Metrics) -> None:
        if not self.active:
            return
        self._write({"step": trainer.step, "kind": split, **flatten(metrics)})
        line = f"step {trainer.step} | {split} | {metrics_line(metrics)}"
        if self._bar:
            self._bar.console.print(line)
        else:
            logger.info(line)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """To TensorBoard alone. What is not finite is left out."""
        if not self.active:
            return
        for key, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(key, value, step)

    def image(self, step: int, key: str, pixels: np.ndarray) -> None:
        """[H, W, 3] uint8, to TensorBoard."""
        if self.active:
            self._board.add_image(key, pixels, step, dataformats="HWC")

    def _start_interval(self, trainer: Trainer) -> None:
        self._interval = (trainer.step, time.perf_counter(), trainer.paused_s, trainer.loader.wait_s)

    def _rates(self, trainer: Trainer) -> dict[str, float]:
        """Samples per second, and the share of time spent waiting for data, without the time spent in callbacks."""
        step, started, paused_s, wait_s = self._interval
        elapsed = time.perf_counter() - started - (trainer.paused_s - paused_s)
        samples = (trainer.step - step) * trainer.job.data.batch_size * trainer.ranks.world_size
        return {"samples_per_s": samples / elapsed, "data_wait": (trainer.loader.wait_s - wait_s) / elapsed}

    def _show_step(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        step, total = trainer.step, trainer.total_steps
        rate = f"{values['samples_per_s']:,.0f} samples/s, data wait {values['data_wait']:.1%}"
        if self._bar:
            self._bar.update(self._task, completed=step, status=f"loss {values['loss']:.4f} | {rate}")
            return
        losses = " ".join(f"{key.removeprefix('loss/')} {v:.4f}" for key, v in values.items() if key.startswith("loss"))
        eta = (time.perf_counter() - self._started) / max(step - self._first_step, 1) * (total - step)
        logger.info(f"step {step}/{total} | {losses} | {rate} | {eta:.0f} s left")

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(jsonable(record)) + "\n")
        self._file.flush()
        step, kind = record["step"], record["kind"]
        self.scalars(step, {f"{kind}/{key}": value for key, value in record.items() if key not in ("step", "kind")})


def step_values(trainer: Trainer, output: StepOutput) -> dict[str, float]:
    """The weighted loss, every task's loss, its weight where that changes, and the learning rates of the step."""
    job, report = trainer.job, output.report
    losses, weights = report.losses.tolist(), report.coefficients.tolist()
    values = {"loss": sum(weight * loss for weight, loss in zip(weights, losses, strict=True))}
    values |= {f"loss/{task.name}": loss for task, loss in zip(job.tasks, losses, strict=True)}
    if job.loss.weighting.kind != "static":
        values |= {f"weight/{task.name}": weight for task, weight in zip(job.tasks, weights, strict=True)}
    for part in ("dense", "sparse"):
        values[f"lr/{part}"] = learning_rate(getattr(job.optim, part), trainer.step - 1, trainer.total_steps)
    return values


def _open_log(path: Path, start_step: int, last_step: int) -> Any:
    """Drops what a resumed run will write again: what came after the checkpoint, and a last line that was cut off."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(record, dict) or not {"step", "kind"} <= record.keys():
                break
            is_final = record["kind"] != "train" and record["step"] == last_step
            if record["step"] <= start_step and start_step > 0 and not is_final:
                kept.append(line + "\n")
    write_text(path, "".join(kept))
    return path.open("a", encoding="utf-8")


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
    return Progress(*columns, *times, console=console)
