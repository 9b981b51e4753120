"""How well a score orders what each user was shown: NDCG@k and hit rate@k, means over users.

N rows. Every row of a user has to be there at once, so an evaluation keeps them on the host, and every rank gets all
ranks'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mtlrec.batch import NO_GROUP
from mtlrec.config import JobConfig
from mtlrec.errors import ConfigError
from mtlrec.heads import HeadOutput
from mtlrec.losses import TaskLosses
from mtlrec.metrics.grouped_auc import rows_of_all_ranks
from mtlrec.models.build import build_task_losses
from mtlrec.models.train_module import StepOutput

SMALLEST = 1e-12
"""Below it a predicted watch time counts as this: the product of scores is taken by its logarithm."""


@dataclass(frozen=True)
class RankMetric:
    """`ndcg@10` or `hit_rate@10`: which of the two, and how many of a user's first rows it looks at."""

    kind: str
    k: int

    @staticmethod
    def parse(text: str) -> RankMetric:
        """Raises ConfigError for anything else."""
        found = re.fullmatch(r"(ndcg|hit_rate)@([1-9]\d{0,5})", text)
        if found is None:
            raise ConfigError(f"--rank-metric {text}: ndcg@K or hit_rate@K, as in ndcg@10")
        return RankMetric(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.kind}@{self.k}"


class RankedRows:
    """Accumulates what rankings are made of and judged by.

    Args:
        scored: the tasks whose predictions a score may be made of
        worth: by task, what its label adds to what an impression was worth to its user; an unknown label adds nothing
    """

    def __init__(self, job: JobConfig, scored: list[str], worth: Mapping[str, float]) -> None:
        names = [task.name for task in job.tasks]
        self._losses = build_task_losses(job)
        self._scored = [names.index(name) for name in scored]
        self._worth = [(names.index(name), weight) for name, weight in worth.items() if weight]
        self._parts: list[tuple[np.ndarray, ...]] = []

    def update(self, step: StepOutput) -> None:
        """A row counts where its user is known, and at least one of the labels that make its worth."""
        batch = step.batch
        assert batch.group_ids is not None
        known = batch.entire_space & (batch.sample_weights > 0)
        targets = batch.targets.where(known, 0.0)
        worth = sum(weight * targets[:, task] for task, weight in self._worth)
        inside = known[:, [task for task, _ in self._worth]].any(1) & (batch.group_ids != NO_GROUP)
        logs = log_scores(step.outputs, self._losses)[:, self._scored]
        self._parts.append(tuple(one[inside].cpu().numpy() for one in (batch.group_ids, logs, torch.as_tensor(worth))))

    def compute(self) -> tuple[PerUser, np.ndarray]:
        """Collective. The users, and the logarithms of the tasks' scores [N, scored] of their rows."""
        groups, logs, worth = rows_of_all_ranks(*(np.concatenate(part) for part in zip(*self._parts, strict=True)))
        users = PerUser.of(groups, worth)
        return users, logs[users.rows].astype(np.float64)


def log_scores(outputs: HeadOutput, losses: TaskLosses) -> Tensor:
    """[B, T]: log p(task) over all impressions, of a watch time the logarithm; a regression's may be NaN."""
    values = losses.predictions(outputs)
    columns = [
        outputs.log_entire_p[:, task] if loss.is_probability else values[:, task].clamp(min=SMALLEST).log()
        for task, loss in enumerate(losses)
    ]
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class PerUser:
    """The rows of those users to whom not all they were shown was worth the same: only there an order can be wrong.

    Attributes:
        rows: which of all rows these are, a user's together; scores are given in this order
        user: [rows], 0 to users - 1, rising
        worth: [rows], at least 0
    """

    rows: np.ndarray
    user: np.ndarray
    worth: np.ndarray

    @staticmethod
    def of(groups: np.ndarray, worth: np.ndarray) -> PerUser:
        """Args: groups [N], whose each row is; worth [N]."""
        shuffled = np.random.default_rng(0).permutation(len(groups))  # of equal scores any may come first
        rows = shuffled[np.argsort(groups[shuffled], kind="stable")]
        ordered = worth[rows].astype(np.float64)
        _, starts, user = np.unique(groups[rows], return_index=True, return_inverse=True)
        if not len(rows):
            return PerUser(rows, user, ordered)
        judged = np.maximum.reduceat(ordered, starts) > np.minimum.reduceat(ordered, starts)
        return PerUser(rows, user, ordered).only(judged)

    @property
    def users(self) -> int:
        return int(self.user[-1]) + 1 if len(self.user) else 0

    def only(self, wanted: np.ndarray) -> PerUser:
        """wanted [users], of booleans."""
        kept = wanted[self.user]
        return PerUser(self.rows[kept], np.unique(self.user[kept], return_inverse=True)[1], self.worth[kept])

    def sample(self, rows: int, seed: int) -> np.ndarray:
        """[users]: some by lot, who have so many rows together, or one alone."""
        order = np.random.default_rng(seed).permutation(self.users)
        together = np.cumsum(np.bincount(self.user)[order])
        wanted = np.zeros(self.users, dtype=bool)
        wanted[order[: max(1, int(np.searchsorted(together, rows, side="right")))]] = True
        return wanted

    @cached_property
    def _place(self) -> np.ndarray:
        """[rows], from 0 within each user's."""
        return np.arange(len(self.user)) - np.searchsorted(self.user, np.arange(self.users))[self.user]

    @cached_property
    def _best(self) -> np.ndarray:
        """[rows], what they are worth in the best order."""
        return self._ordered(self.worth)

    def measure(self, metric: RankMetric, scores: np.ndarray) -> np.ndarray:
        """[users], of scores [rows], the highest first.

        NDCG (Jarvelin and Kekalainen 2002): what the first k are worth, the i-th divided by log2(i + 1), over the same
        in the best order. Hit rate: 1 where something among the first k is worth more than 0, else 0.
        """
        found, is_first = self._ordered(scores), self._place < metric.k
        if metric.kind == "hit_rate":
            return (np.bincount(self.user, (found > 0) & is_first) > 0).astype(np.float64)
        discount = np.where(is_first, 1 / np.log2(self._place + 2), 0)
        gained, ideal = (np.bincount(self.user, worth * discount) for worth in (found, self._best))
        return np.asarray(gained / ideal)

    def _ordered(self, by: np.ndarray) -> np.ndarray:
        """What the rows are worth, every user's in falling order of `by`."""
        return self.worth[np.lexsort((-by, self.user))]
