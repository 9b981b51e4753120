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
from mtlrec.training.evaluate import evaluate
from mtlrec.training.fused_score import FusedScore, as_array, may_be_scored, named, search
from mtlrec.training.metrics import TaskMetrics
from mtlrec.training.ranking import PerUser, RankedRows, RankMetric
from mtlrec.training.sharded import ShardedModel


@dataclass(frozen=True)
class Ranked:
    """A split's users and scores, and what `evaluate` gives of the same rows."""

    users: PerUser
    logs: np.ndarray
    metrics: TaskMetrics

    def of_users(self, metric: RankMetric, powers: np.ndarray) -> np.ndarray:
        """[users], by the product of scores to these powers."""
        return self.users.measure(metric, self.logs @ powers)


class Mean(NamedTuple):
    """Over users, with half of its 95 % interval, by the normal approximation."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class RankingReport:
    """How well each score ranks.

    Attributes:
        score: the exponents
        users: by split, how many are judged
        figures: by split, by score (fused, all alike, a task's name), by metric
        alone: the task whose own score ranks best, on the split where the powers were searched
        gains: by split, by metric, of the fused score over that one, user by user
    """

    score: FusedScore
    users: dict[str, int]
    figures: dict[str, dict[str, dict[str, Mean]]]
    alone: str
    gains: dict[str, dict[str, Mean]]


def ranked_rows(
    model: ShardedModel, loader: Loader, job: JobConfig, ranks: Ranks, relevance: Mapping[str, float], progress: str
) -> Ranked:
    """Collective. One pass over a split whose loader knows the users.

    Raises ValueError where no user was shown things of different worth.
    """
    rows = RankedRows(job, may_be_scored(job), relevance)
    metrics = evaluate(model.module, loader, job, ranks, progress, after_batch=rows.update)
    users, logs = rows.compute()
    if not users.users:
        raise ValueError(
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
        exponents = named(search(valid.users, valid.logs, metric, job.train.seed), tasks)
    score = FusedScore(exponents=dict(exponents), metric=str(metric), relevance=dict(relevance))
    ways = {"fused": as_array(exponents, tasks), "all alike": np.ones(len(tasks))}
    ways |= dict(zip(tasks, np.eye(len(tasks)), strict=True))
    first = next(iter(splits.values()))  # valid, where the powers were searched there
    alone = max(tasks, key=lambda task: first.of_users(metric, ways[task]).mean())
    both = [RankMetric("ndcg", metric.k), RankMetric("hit_rate", metric.k)]
    figures = {
        split: {way: {str(one): mean_of(of.of_users(one, powers)) for one in both} for way, powers in ways.items()}
        for split, of in splits.items()
    }
    gains = {
        split: {str(one): mean_of(of.of_users(one, ways["fused"]) - of.of_users(one, ways[alone])) for one in both}
        for split, of in splits.items()
    }
    return RankingReport(score, {split: of.users.users for split, of in splits.items()}, figures, alone, gains)


def mean_of(users: np.ndarray) -> Mean:
    return Mean(float(users.mean()), 1.96 * float(users.std()) / math.sqrt(len(users)))
