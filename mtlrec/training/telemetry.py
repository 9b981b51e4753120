"""What a run says: a progress bar or plain lines, `metrics.jsonl`, TensorBoard events, a table at the end.

Only rank 0 speaks. Messages go to stderr, so that stdout holds nothing but what `--json` promises.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from mtlrec.config.tasks import MIN_TEST_POSITIVES
from mtlrec.metrics.task_metrics import Metrics
from mtlrec.run_folder import RunFolder

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30


def watched(items: Iterable[Item], total: int, what: str, active: bool) -> Iterator[Item]:
    """The items, and how far they are: a bar on a terminal, a line now and then in a log."""
    if not active:
        yield from items
    elif sys.stderr.isatty():
        yield from track(items, what, total, console=Console(stderr=True), transient=True)
    else:
        told = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            if time.perf_counter() - told > SECONDS_BETWEEN_LINES and done < total:
                told = time.perf_counter()
                logger.info(f"{what}: {done:,} of {total:,} batches")


class Telemetry:
    """The log of one run; a context manager that closes what it opened. Does nothing where `active` is false."""

    def __init__(self, run: Path, total_steps: int, start_step: int, active: bool) -> None:
        self.active = active
        if not active:
            return
        self.total_steps = total_steps
        self._path = RunFolder(run).metrics
        self._file = _open_log(self._path, start_step, total_steps)
        self._board = SummaryWriter(str(run), purge_step=start_step + 1 if start_step else None)
        self._first_step, self._started = start_step, time.perf_counter()
        self._bar = _bar() if sys.stderr.isatty() else None
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("train", total=total_steps, completed=start_step, status="")

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self._file.close()
            self._board.close()
            if self._bar:
                self._bar.stop()

    def has(self, step: int, kind: str) -> bool:
        """Whether the log has such a line; those after the checkpoint were dropped when it was opened."""
        lines = (json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines())
        return any((line["step"], line["kind"]) == (step, kind) for line in lines)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """`values`: loss, loss/TASK, samples_per_s, data_wait, lr/*; written at every `log_every`-th step."""
        if not self.active:
            return
        self._write({"step": step, "kind": "train", **values})
        losses = " ".join(f"{key.removeprefix('loss/')} {v:.4f}" for key, v in values.items() if key.startswith("loss"))
        rate = f"{values['samples_per_s']:,.0f} samples/s, data wait {values['data_wait']:.1%}"
        if self._bar:
            self._bar.update(self._task, completed=step, status=f"loss {values['loss']:.4f} | {rate}")
        else:
            done = step - self._first_step
            eta = (time.perf_counter() - self._started) / max(done, 1) * (self.total_steps - step)
            logger.info(f"step {step}/{self.total_steps} | {losses} | {rate} | {eta:.0f} s left")

    def evaluation(self, step: int, split: str, metrics: Metrics) -> None:
        if not self.active:
            return
        self._write({"step": step, "kind": split, **flatten(metrics)})
        line = f"step {step} | {split} | {one_line(metrics)}"
        if self._bar:
            self._bar.console.print(line)
        else:
            logger.info(line)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """To TensorBoard alone; what is not finite is left out."""
        if not self.active:
            return
        for key, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(key, value, step)

    def image(self, step: int, key: str, pixels: np.ndarray) -> None:
        """[H, W, 3] uint8, to TensorBoard."""
        if self.active:
            self._board.add_image(key, pixels, step, dataformats="HWC")

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(jsonable(record)) + "\n")
        self._file.flush()
        step, kind = record["step"], record["kind"]
        self.scalars(step, {f"{kind}/{key}": value for key, value in record.items() if key not in ("step", "kind")})


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
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
    return Progress(*columns, *times, console=Console(stderr=True))


def flatten(metrics: Metrics) -> dict[str, float]:
    return {f"{task}/{name}": value for task, values in metrics.items() for name, value in values.items()}


def jsonable(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(metrics: Metrics) -> str:
    shown = (
        f"{task} {'auc' if 'auc' in values else 'mse'} {values.get('auc', values.get('mse', math.nan)):.4f}"
        for task, values in metrics.items()
    )
    return ", ".join(shown)


def metrics_table(metrics: Metrics, title: str) -> Table:
    """Metrics down, tasks across; what a task does not have is left blank."""
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    few = [task for task, values in metrics.items() if values.get("positives", math.inf) < MIN_TEST_POSITIVES]
    caption = f"undecidable, under {MIN_TEST_POSITIVES} positives: {', '.join(few)}" if few else None
    table = Table("", title=title, caption=caption)
    for task in metrics:
        table.add_column(task, justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(_shown(name, values.get(name)) for values in metrics.values()))
    return table


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if name in ("rows", "positives", "inconsistent_labels", "missing_labels") else f"{value:.4f}"
