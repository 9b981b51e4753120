"""AUC within groups, a user's impressions say, averaged by their rows: GAUC (Zhu et al., KDD 2017).

Every row of every group has to be there at once, so the scores of an evaluation are kept on the host, 16 bytes a row
and task, and every rank gets all ranks'.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.distributed as dist

from mtlrec.metrics.metric import Metric, Sums, TaskRows

ROW = [("group", "<i8"), ("score", "<f4"), ("target", "<f4")]


class GroupedRows(Sums):
    """(group, score, target) of rows. Weights other than 0 do not matter."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._rows: list[np.ndarray] = []

    def update(self, rows: TaskRows) -> None:
        assert rows.group_ids is not None
        inside = rows.weight > 0
        kept = np.empty(int(inside.sum()), dtype=ROW)
        score = rows.log_p - rows.log_not_p
        for name, values in (("group", rows.group_ids), ("score", score), ("target", rows.target)):
            kept[name] = values[inside].cpu().numpy()
        self._rows.append(kept)

    def over_ranks(self) -> Self:
        total = type(self)(self.device)
        total._rows = [np.concatenate(self._rows) if self._rows else np.empty(0, ROW)]
        columns = rows_of_all_ranks(*(total._rows[0][name] for name in ("group", "score", "target")))
        total._rows = [np.rec.fromarrays(columns, dtype=ROW)]
        return total

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Groups, scores and targets, [N] each."""
        rows = np.concatenate(self._rows)
        return rows["group"], rows["score"], rows["target"]


class GroupedAUC(Metric):
    """Mean AUC of the groups that have both labels, each by its number of rows. NaN where there is none."""

    name, description = "gauc", "mean AUC within groups, by their rows (Zhu et al., KDD 2017)"
    sums, of, direction, needs_groups = GroupedRows, "probabilities", "highest", True

    @staticmethod
    def value(sums: GroupedRows) -> float:
        return grouped_auc(*sums.columns)


class GroupAUCs(NamedTuple):
    """[groups] each: AUC is NaN in a group that has one label only."""

    ids: np.ndarray
    auc: np.ndarray
    rows: np.ndarray
    positives: np.ndarray


def grouped_auc(groups: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> float:
    """[N] each. The mean by rows of the groups that have both labels."""
    found = auc_of_groups(groups, scores, targets)
    both = ~np.isnan(found.auc)
    return float(np.average(found.auc[both], weights=found.rows[both])) if both.any() else math.nan


def auc_of_groups(groups: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> GroupAUCs:
    """[N] each. Equal scores within a group count one half."""
    if not len(groups):
        return GroupAUCs(groups, np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    order = np.lexsort((scores, groups))
    groups, scores, targets = groups[order], scores[order], targets[order].astype(np.float64)
    starts = np.concatenate([[True], groups[1:] != groups[:-1]])
    group = np.cumsum(starts) - 1
    tie = np.cumsum(starts | np.concatenate([[True], scores[1:] != scores[:-1]])) - 1
    position = np.arange(len(groups)) - np.flatnonzero(starts)[group] + 1.0
    rank = (np.bincount(tie, position) / np.bincount(tie))[tie]  # the mean of those it ties with
    rows, positives = np.bincount(group), np.bincount(group, targets)
    negatives = rows - positives
    above = np.bincount(group, rank * targets) - positives * (positives + 1) / 2
    both = (positives > 0) & (negatives > 0)
    auc = np.divide(above, positives * negatives, out=np.full(len(rows), np.nan), where=both)
    return GroupAUCs(groups[starts], auc, rows, positives.astype(np.int64))


def rows_of_all_ranks(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Collective. Every rank's rows, in the order of the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return columns
    gathered: list[tuple[np.ndarray, ...]] = [()] * dist.get_world_size()
    dist.all_gather_object(gathered, columns)
    return tuple(np.concatenate(parts) for parts in zip(*gathered, strict=True))
