"""Whether an artifact says what its checkpoint says, on every row of a split.

Two comparisons. The compiled program against the same computed in eager mode must agree row by row: in a binary task's
p(task) to `tolerance`, in its logarithm, which calibration and fused scores are made of, to ten times that (a small
probability's has the rounding of a large logit), in other tasks' towers, of a watch time the logarithm, to `tolerance`.
A difference of numbers above 1 is taken relative to them. Where tables were quantized rows may differ, and the tasks'
metrics are compared with those of the float32 tables.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.config.base import Strict
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.evaluation.evaluate import check_finite
from mtlrec.evaluation.task_metrics import Metrics, TaskMetrics
from mtlrec.heads import HeadOutput
from mtlrec.models.build import build_task_losses
from mtlrec.models.train_module import StepOutput
from mtlrec.training.loading import log_skipped_rows
from mtlrec.training.progress import watched

JUDGED = ("auc", "entire_auc", "log_loss", "mse")
MOST_OF_LOSS = 0.005
"""How far quantized tables may move a mean squared error or a log loss, relative to it."""


Figures = dict[str, dict[str, tuple[float | None, float | None]]]
"""By task and metric, of the checkpoint and of the artifact; None where the rows cannot give the figure."""


class Parity(Strict):
    """What was found; `differences` by task are the largest of any row."""

    split: str
    rows: int
    tolerance: float
    most_auc_change: float
    differences: dict[str, float]
    metrics: Figures
    failures: list[str]

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


Model = Callable[[Batch], tuple[Tensor, StepOutput]]


def compare(
    checkpoint: nn.Module,
    uncompiled: Model,
    artifact: Model,
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
        uncompiled: what the artifact is to equal row by row; `checkpoint` itself where nothing is quantized
        artifact: the compiled program
    """
    is_quantized = uncompiled is not checkpoint
    losses = build_task_losses(job)
    before, after = TaskMetrics.of(job, ranks.device), TaskMetrics.of(job, ranks.device)
    largest, rows = torch.zeros(len(losses), dtype=torch.float64), 0
    with torch.no_grad():
        for batch in watched(loader.epoch(), loader.steps_per_epoch, "parity", ranks.is_first):
            batch = batch.to(ranks.device)
            (_, of_checkpoint), (_, of_artifact) = checkpoint(batch), artifact(batch)
            of_same = uncompiled(batch)[1] if is_quantized else of_checkpoint
            check_finite(losses.predictions(of_checkpoint.outputs), job, batch.origin)
            before.update(of_checkpoint)
            after.update(of_artifact)
            real = batch.row_mask > 0
            found = apart(of_artifact.outputs, of_same.outputs, losses.is_probability)
            largest = torch.maximum(largest, found[real].amax(0).cpu() if real.any() else largest)
            rows += int(real.sum())
            ranks.liveness.tick()
    log_skipped_rows(loader, ranks)
    by_task = dict(zip([task.name for task in job.tasks], largest.tolist(), strict=True))
    metrics = _beside(job, before.compute(), after.compute())
    failures = [f"data.{split}: no row of it was compared, all were left out"] if not rows else []
    failures += _too_far(by_task, tolerance)
    failures += _changed(job, metrics, most_auc_change) if is_quantized else []
    return Parity(
        split=split,
        rows=rows,
        tolerance=tolerance,
        most_auc_change=most_auc_change,
        differences={name: min(value, sys.float_info.max) for name, value in by_task.items()},
        metrics=metrics,
        failures=failures,
    )


def apart(found: HeadOutput, expected: HeadOutput, is_probability: list[bool]) -> Tensor:
    """[B, T] float64; see the top of this file."""
    is_log = torch.tensor(is_probability, device=found.value.device)
    logs = differences(found.log_entire_p, expected.log_entire_p)
    probabilities = differences(found.log_entire_p.exp(), expected.log_entire_p.exp())
    return torch.maximum(logs / 10, probabilities).where(is_log, differences(found.value, expected.value))


def differences(found: Tensor, expected: Tensor) -> Tensor:
    """float64, relative to what is above 1; infinite where something is not finite."""
    found, expected = found.double(), expected.double()
    return ((found - expected).abs() / expected.abs().clamp(min=1.0)).nan_to_num(nan=math.inf, posinf=math.inf)


def _beside(job: JobConfig, before: Metrics, after: Metrics) -> Figures:
    return {
        task.name: {
            metric: (_finite(before[task.name][metric]), _finite(after[task.name][metric]))
            for metric in JUDGED
            if metric in before[task.name]
        }
        for task in job.tasks
    }


def _finite(value: float) -> float | None:
    """None where the rows cannot give the figure: there are none, or of one class."""
    return value if math.isfinite(value) else None


def _too_far(by_task: dict[str, float], tolerance: float) -> list[str]:
    return [
        f"{name}: compiled and eager differ by {value:.2g} in some row, {tolerance:.2g} is allowed; where they only "
        "add up in another order, raise --tolerance"
        for name, value in by_task.items()
        if not value <= tolerance
    ]


def _changed(job: JobConfig, metrics: Figures, most_auc_change: float) -> list[str]:
    failures = []
    for task in job.tasks:
        for metric, (before, after) in metrics[task.name].items():
            if before is None:
                continue  # of one class there is no AUC; the loss is judged too
            is_auc = metric.endswith("auc")
            allowed = most_auc_change if is_auc else MOST_OF_LOSS * before
            if after is None or abs(after - before) > allowed:
                by = "--max-auc-change" if is_auc else f"{MOST_OF_LOSS:.1%} of it"
                failures.append(
                    f"{task.name}: {metric} {before:.6f} became {math.nan if after is None else after:.6f}, "
                    f"{allowed:.2g} is allowed ({by}); --quantize fp16, or none, moves less"
                )
    return failures
