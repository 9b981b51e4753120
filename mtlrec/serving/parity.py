"""Whether an artefact says what its checkpoint says, on every row of a split.

Two comparisons. The compiled program against the same computed in eager mode must agree row by row, to `tolerance`: of
a probability that is the difference, of a regression or watch time the difference relative to what is above 1. Where
tables were quantised, rows may differ, and the tasks' metrics are compared with those of the float32 tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.config.base import Strict
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.heads.funnel import Kind
from mtlrec.models.train_module import StepOutput
from mtlrec.training.evaluate import check_finite
from mtlrec.training.loading import say_what_was_skipped
from mtlrec.training.metrics import Metrics, TaskMetrics
from mtlrec.training.telemetry import watched

JUDGED = {"binary": ("auc", "entire_auc"), "regression": ("mse",), "watch_time": ("mse",)}
MOST_OF_MSE = 0.005
"""How far quantised tables may move a mean squared error, relative to it."""


class Parity(Strict):
    """What was found. `differences` by task, the largest of any row; `metrics` by task and metric (checkpoint,
    artefact)."""

    split: str
    rows: int
    tolerance: float
    most_auc_change: float
    differences: dict[str, float]
    metrics: dict[str, dict[str, tuple[float | None, float | None]]]
    failures: list[str]

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


Model = Callable[[Batch], tuple[Tensor, StepOutput]]


def compare(
    checkpoint: nn.Module,
    uncompiled: Model,
    artefact: Model,
    loader: Loader,
    job: JobConfig,
    ranks: Ranks,
    split: str,
    tolerance: float,
    most_auc_change: float,
) -> Parity:
    """One pass.

    Args:
        checkpoint: the train module with float32 tables, in eager mode
        uncompiled: what the artefact is to equal row by row; `checkpoint` where nothing is quantised
        artefact: the compiled program
    """
    kinds = [task.kind for task in job.tasks]
    before, after = TaskMetrics.of(job, ranks.device), TaskMetrics.of(job, ranks.device)
    largest, rows = torch.zeros(len(kinds), dtype=torch.float64), 0
    with torch.no_grad():
        for batch in watched(loader.epoch(), loader.steps_per_epoch, "parity", ranks.is_first):
            batch = batch.to(ranks.device)
            (_, of_checkpoint), (_, of_artefact) = checkpoint(batch), artefact(batch)
            of_same = of_checkpoint if uncompiled is checkpoint else uncompiled(batch)[1]
            check_finite(of_checkpoint.outputs.predictions(kinds), job, batch.origin)
            before.update(of_checkpoint)
            after.update(of_artefact)
            real = batch.weights > 0
            found = differences(of_artefact.outputs.predictions(kinds), of_same.outputs.predictions(kinds), kinds)
            largest = torch.maximum(largest, found[real].amax(0).cpu() if real.any() else largest)
            rows += int(real.sum())
            ranks.liveness.tick()
    say_what_was_skipped(loader, ranks)
    by_task = dict(zip([task.name for task in job.tasks], largest.tolist(), strict=True))
    metrics = _beside(job, before.compute(), after.compute())
    return Parity(
        split=split,
        rows=rows,
        tolerance=tolerance,
        most_auc_change=most_auc_change,
        differences={name: value if math.isfinite(value) else 1e300 for name, value in by_task.items()},
        metrics=metrics,
        failures=[*_apart(by_task, tolerance), *_changed(job, metrics, most_auc_change)],
    )


def differences(found: Tensor, expected: Tensor, kinds: list[Kind]) -> Tensor:
    """[B, T] each -> [B, T] float64; infinite where something is not finite."""
    found, expected = found.double(), expected.double()
    is_binary = torch.tensor([kind == "binary" for kind in kinds], device=found.device)
    scale = torch.where(is_binary, 1.0, expected.abs().clamp(min=1.0))
    return ((found - expected).abs() / scale).nan_to_num(nan=math.inf)


def _beside(job: JobConfig, before: Metrics, after: Metrics) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    return {
        task.name: {
            metric: (_finite(before[task.name][metric]), _finite(after[task.name][metric]))
            for metric in JUDGED[task.kind]
            if metric in before[task.name]
        }
        for task in job.tasks
    }


def _finite(value: float) -> float | None:
    """None where the rows cannot give the figure: there are none, or of one class."""
    return value if math.isfinite(value) else None


def _apart(by_task: dict[str, float], tolerance: float) -> list[str]:
    return [
        f"{name}: compiled and eager differ by {value:.2g} in some row, {tolerance:.2g} is allowed (--tolerance)"
        for name, value in by_task.items()
        if not value <= tolerance
    ]


def _changed(
    job: JobConfig, metrics: dict[str, dict[str, tuple[float | None, float | None]]], most: float
) -> list[str]:
    failures = []
    for task in job.tasks:
        for metric, (before, after) in metrics[task.name].items():
            if before is None or after is None:
                continue
            allowed = most if task.is_binary else MOST_OF_MSE * before
            if abs(after - before) > allowed:
                option = " (--max-auc-change)" if task.is_binary else ""
                failures.append(
                    f"{task.name}: {metric} {before:.6f} became {after:.6f}, {allowed:.2g} is allowed{option}; "
                    "take fp16, or none"
                )
    return failures
