"""How well the fused score orders what each user was shown, beside every task's own score and all tasks alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtlrec.config import JobConfig
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import ConfigError
from mtlrec.evaluation.evaluate import evaluate
from mtlrec.evaluation.fused_score import FusedScore, as_array, may_be_scored, named, search
from mtlrec.evaluation.ranking import PerUser, RankedRows, RankMetric
from mtlrec.evaluation.task_metrics import TaskMetrics
from mtlrec.training.sharded import ShardedModel


@dataclass(frozen=True)
class Ranked:
    """A split's users, the logarithms of the tasks' scores [users.rows, tasks], and what `evaluate` gives."""

    users: PerUser
    logs: np.ndarray
    metrics: TaskMetrics

    def of_users(self, metric: RankMetric, powers: np.ndarray) -> np.ndarray:
        """[users], by the product of scores to these powers."""
        return self.users.measure(metric, self.logs @ powers)


class Mean(NamedTuple):
    """Over users, with half of its 95 % interval, by the normal approximation; infinite for a user alone."""

    mean: float
    half_width: float


Figures = dict[str, dict[str, Mean]]
"""By split, by metric."""


@dataclass(frozen=True)
class RankingReport:
    """How well each score ranks, by `metric` and its companion for `relevance`.

    Attributes:
        score: the exponents
        users: by split, how many are judged
        fused, alike, random_order: of the fused score, of all tasks to one power, of any order; by split, by metric
        tasks: of each task's own score; by split, by task, by metric
        alone: the task whose own score ranks best on the first split, valid where powers are searched
        gains: by split, by metric, of the fused score over that one, user by user
    """

    metric: str
    relevance: dict[str, float]
    score: FusedScore
    users: dict[str, int]
    fused: Figures
    alike: Figures
    random_order: Figures
    tasks: dict[str, dict[str, dict[str, Mean]]]
    alone: str
    gains: Figures


def ranked_rows(
    model: ShardedModel, loader: Loader, job: JobConfig, ranks: Ranks, relevance: Mapping[str, float], progress: str
) -> Ranked:
    """Collective. One pass over a split whose loader knows the users.

    Raises ConfigError where no user was shown things of different worth.
    """
    rows = RankedRows(job, may_be_scored(job), relevance)
    metrics = evaluate(model.module, loader, job, ranks, progress, after_batch=rows.update)
    users, logs = rows.compute()
    if not users.users:
        raise ConfigError(
            f"--rank-metric: in this split no group of {job.metrics.group_by} has rows of different worth, so that any "
            f"order is as good; see --relevance and metrics.group_by ({progress})"
        )
    return Ranked(users, logs, metrics)


def report_on(
    splits: Mapping[str, Ranked],
    job: JobConfig,
    metric: RankMetric,
    relevance: Mapping[str, float],
    exponents: Mapping[str, float] | None,
) -> RankingReport:
    """Without exponents they are searched on the valid split, which `splits` then has."""
    tasks = may_be_scored(job)
    if exponents is None:
        valid = splits["valid"]
        found = named(search(valid.users, valid.logs, metric, job.train.seed), tasks)
        score = FusedScore(exponents=found, metric=str(metric), relevance=dict(relevance))
    else:
        score = FusedScore(exponents=dict(exponents))
    fused, alike = as_array(score.exponents, tasks), np.ones(len(tasks))
    own = dict(zip(tasks, np.eye(len(tasks)), strict=True))
    first = next(iter(splits.values()))  # valid, where the powers were searched there
    alone = max(tasks, key=lambda task: first.of_users(metric, own[task]).mean())
    both = [RankMetric("ndcg", metric.k), RankMetric("hit_rate", metric.k)]

    def figures(of: Ranked, powers: np.ndarray) -> dict[str, Mean]:
        return {str(one): mean_of(of.of_users(one, powers)) for one in both}

    return RankingReport(
        metric=str(metric),
        relevance=dict(relevance),
        score=score,
        users={split: of.users.users for split, of in splits.items()},
        fused={split: figures(of, fused) for split, of in splits.items()},
        alike={split: figures(of, alike) for split, of in splits.items()},
        random_order={
            split: {str(one): mean_of(of.users.measure(one, _random_scores(len(of.users.rows)))) for one in both}
            for split, of in splits.items()
        },
        tasks={split: {task: figures(of, own[task]) for task in tasks} for split, of in splits.items()},
        alone=alone,
        gains={
            split: {str(one): mean_of(of.of_users(one, fused) - of.of_users(one, own[alone])) for one in both}
            for split, of in splits.items()
        },
    )


def mean_of(users: np.ndarray) -> Mean:
    deviation = float(users.std(ddof=1)) if len(users) > 1 else math.inf
    return Mean(float(users.mean()), 1.96 * deviation / math.sqrt(len(users)))


def _random_scores(rows: int) -> np.ndarray:
    return np.random.default_rng(0).random(rows)
