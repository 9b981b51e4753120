"""One score of many predictions, to order by: the product of the tasks' predictions, each to a power of its own.

What production rankers do with p(click), p(like) and a watch time. The powers are searched on the valid split, or
given, and kept beside the weights they belong to: `checkpoints/step_N/fused_score.json`. `predict` writes the score
where they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mtlrec.config import JobConfig
from mtlrec.config.base import Strict
from mtlrec.errors import CheckpointError, ConfigError, NonFiniteError
from mtlrec.evaluation.ranking import PerUser, RankMetric, log_scores
from mtlrec.heads import HeadOutput
from mtlrec.io import one_line, write_text
from mtlrec.losses import TaskLosses
from mtlrec.run_folder import FUSED_SCORE

COLUMN = "fused_score"
RANDOM_STARTS = 200
WIDTHS = (0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.02, 0.02, 0.01, 0.01)
"""Of the search: how far its steps go, in turn."""
MOST_ROWS = 300_000
"""A search looks at users by lot who have so many rows."""


class FusedScore(Strict):
    """prod of prediction ** exponent over the tasks named. Binary: p(task) over all impressions, as the model has it,
    without a calibration. Watch times: in their label's unit.

    `metric` and `relevance` say what the exponents were searched for, where they were.
    """

    exponents: dict[str, float] = Field(min_length=1)
    metric: str | None = None
    relevance: dict[str, float] = {}

    def __str__(self) -> str:
        return " x ".join(f"{task}^{power:g}" for task, power in self.exponents.items() if power)

    @model_validator(mode="after")
    def _is_finite(self) -> FusedScore:
        if not all(map(math.isfinite, self.exponents.values())) or not any(self.exponents.values()):
            raise ValueError("exponents are finite numbers, and not all of them 0")
        return self

    def of(self, outputs: HeadOutput, job: JobConfig, losses: TaskLosses) -> Tensor:
        """[B] float64, so that many small factors do not vanish. Raises NonFiniteError where it overflows."""
        score = self.product(outputs, job, losses)
        if not torch.isfinite(score).all():
            raise NonFiniteError(
                f"fused_score: {self} is too large a number; take smaller exponents, in the same proportion"
            )
        return score

    def product(self, outputs: HeadOutput, job: JobConfig, losses: TaskLosses) -> Tensor:
        """[B] float64, infinite where it is too large."""
        logs = log_scores(outputs, losses).double()
        names = [task.name for task in job.tasks]
        used = {names.index(name): power for name, power in self.exponents.items() if power}
        return torch.stack([power * logs[:, task] for task, power in used.items()]).sum(0).exp()

    def write(self, checkpoint: Path) -> None:
        write_text(checkpoint / FUSED_SCORE, self.model_dump_json(indent=1) + "\n")

    @staticmethod
    def read(checkpoint: Path, job: JobConfig) -> FusedScore | None:
        """None where there is none. Raises CheckpointError for a file that holds something else, or other tasks."""
        path = checkpoint / FUSED_SCORE
        if not path.is_file():
            return None
        try:
            found = FusedScore.model_validate_json(path.read_bytes())
            for name in found.exponents:
                if name not in may_be_scored(job):
                    raise ValueError(f"the job has no task {name} whose predictions are positive")
            return found
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: no exponents of a score ({one_line(error)}); search again, or remove it"
            ) from None


def may_be_scored(job: JobConfig) -> list[str]:
    """The tasks whose predictions are positive."""
    return [task.name for task in job.tasks if task.part_class.is_positive]


def exponents_of(text: str, job: JobConfig) -> dict[str, float]:
    """Of `click=1,long_view=0.5`. Raises ConfigError as `relevance_of` does."""
    return _by_task("--exponents", text, job)


def relevance_of(text: str, job: JobConfig) -> dict[str, float]:
    """Of `click,long_view=2`; a task alone has 1.

    Raises ConfigError for a task that is unknown or a regression, and for what is no number, or negative.
    """
    found = _by_task("--relevance", text, job, default=1.0)
    for name, worth in found.items():
        if worth < 0:
            raise ConfigError(f"--relevance {name}={worth:g}: what an impression is worth is at least 0")
    return found


def _by_task(option: str, text: str, job: JobConfig, default: float = math.nan) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, given, number = word.partition("=")
        if name not in [task.name for task in job.tasks]:
            raise ConfigError(f"{option} {word}: no such task; tasks are {', '.join(task.name for task in job.tasks)}")
        if name not in may_be_scored(job):
            raise ConfigError(f"{option} {word}: {name} is a regression, which may be negative; take the others")
        if name in found:
            raise ConfigError(f"{option} {word}: {name} is named twice")
        try:
            value = float(number) if given else default
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{option} {word}: TASK=NUMBER, as in {name}=0.5")
        found[name] = value
    if not any(found.values()):
        raise ConfigError(f"{option} {text}: names no task with a number other than 0")
    return found


def search(users: PerUser, logs: np.ndarray, metric: RankMetric, seed: int) -> np.ndarray:
    """The exponents [tasks], at least 0 and 1 in all, with the highest `metric`.

    The best of tasks alone, all alike and random ones, from there one task up or down in ever smaller steps; a task
    that the metric does not miss gets 0.

    Args:
        logs: [rows, tasks], the logarithms of the tasks' scores
    """
    wanted = users.sample(MOST_ROWS, seed)
    logs, users, tasks = logs[wanted[users.user]], users.only(wanted), logs.shape[1]

    def measure(exponents: np.ndarray) -> float:
        return float(users.measure(metric, logs @ exponents).mean())

    random = np.random.default_rng(seed).dirichlet(np.full(tasks, 0.5), RANDOM_STARTS)
    starts = np.concatenate([np.eye(tasks), np.full((1, tasks), 1 / tasks), random])
    reached = [measure(start) for start in starts]
    best, exponents = max(reached), starts[int(np.argmax(reached))]
    for width in WIDTHS:
        for step in width * np.concatenate([np.eye(tasks), -np.eye(tasks)]):
            trial = (exponents + step).clip(min=0)
            if trial.any() and (found := measure(trial / trial.sum())) > best:
                best, exponents = found, trial / trial.sum()
    for without in 1 - np.eye(tasks):
        trial = exponents * without
        if trial.any() and (found := measure(trial)) >= best:
            best, exponents = found, trial / trial.sum()
    return exponents


def named(exponents: np.ndarray, tasks: list[str]) -> dict[str, float]:
    """exponents [tasks], as people read them."""
    return {task: round(float(power), 4) for task, power in zip(tasks, exponents, strict=True)}


def as_array(exponents: Mapping[str, float], tasks: list[str]) -> np.ndarray:
    """[tasks], 0 for those that are not named."""
    return np.array([exponents.get(task, 0.0) for task in tasks])
