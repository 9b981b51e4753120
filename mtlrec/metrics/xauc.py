"""XAUC: how often two rows are ordered as their labels are, for regressions and watch times (Zhan et al., Deconfounding
Duration Bias in Watch-time Prediction for Video Recommendation, KDD 2022).

Of all pairs of rows with different labels, the share whose predictions are ordered alike; equal predictions count one
half. Pairs that are ordered otherwise are counted while rows are merge-sorted. Every row of every rank has to be there
at once, 16 bytes each, as for the AUC within groups. Weights other than 0 do not matter.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch

from mtlrec.metrics.grouped_auc import rows_of_all_ranks
from mtlrec.metrics.metric import Metric, Sums, TaskRows

BLOCK = 64


class OrderedRows(Sums):
    """(group, label, prediction) of rows; the group is 0 where rows have none."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._parts: list[tuple[np.ndarray, ...]] = []

    def update(self, rows: TaskRows) -> None:
        inside = rows.weight > 0
        groups = torch.zeros_like(rows.target, dtype=torch.int64) if rows.group_ids is None else rows.group_ids
        self._parts.append(tuple(part[inside].cpu().numpy() for part in (groups, rows.target, rows.prediction)))

    def over_ranks(self) -> Self:
        total = type(self)(self.device)
        total._parts = [rows_of_all_ranks(*self.columns)]
        return total

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """Groups, labels and predictions, [N] each."""
        empty = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
        return tuple(np.concatenate(parts) for parts in zip(empty, *self._parts, strict=True))


class XAUC(Metric):
    name, description = "xauc", "share of row pairs ordered as their labels are (Zhan et al., KDD 2022)"
    sums, of, direction = OrderedRows, "numbers", "highest"

    @staticmethod
    def value(sums: OrderedRows) -> float:
        _, labels, predictions = sums.columns
        ordered, pairs = concordance(labels, predictions)
        return ordered / pairs if pairs else math.nan


class GroupedXAUC(Metric):
    name, description = "gxauc", "XAUC of pairs within one group"
    sums, of, direction, needs_groups = OrderedRows, "numbers", "highest", True

    @staticmethod
    def value(sums: OrderedRows) -> float:
        groups, labels, predictions = sums.columns
        order = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[order])) + 1
        parts = zip(np.split(labels[order], cuts), np.split(predictions[order], cuts), strict=True)
        ordered, pairs = np.sum([concordance(*part) for part in parts], axis=0)
        return float(ordered / pairs) if pairs else math.nan


def concordance(labels: np.ndarray, predictions: np.ndarray) -> tuple[float, int]:
    """[N] each: how many pairs of different labels are ordered alike, ties by one half; how many there are."""
    by_prediction = np.lexsort((labels, predictions))
    labels, predictions = labels[by_prediction], predictions[by_prediction]
    pairs = _pairs_of_other_labels(labels)
    # Among equal predictions labels rise, so no pair of them counts as inverted.
    tied = sum(_pairs_of_other_labels(part) for part in _runs(predictions, labels))
    return pairs - _inversions(labels) - tied / 2, pairs


def _runs(keys: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """The values of each run of equal keys that is longer than one."""
    runs = np.split(values, np.flatnonzero(np.diff(keys)) + 1)
    return [run for run in runs if len(run) > 1]


def _pairs_of_other_labels(labels: np.ndarray) -> int:
    return _num_pairs(len(labels)) - sum(_num_pairs(count) for count in np.unique(labels, return_counts=True)[1])


def _num_pairs(count: int) -> int:
    return int(count) * (int(count) - 1) // 2


def _inversions(values: np.ndarray) -> int:
    """Pairs i < j with values[i] > values[j]: within blocks all pairs at once, then while sorted blocks are merged."""
    padding = np.full(-len(values) % BLOCK, np.inf, values.dtype)
    blocks = np.concatenate([values, padding]).reshape(-1, BLOCK)
    inversions = int(np.triu(blocks[:, :, None] > blocks[:, None, :], 1).sum())
    values, width = np.sort(blocks, axis=1).ravel(), BLOCK
    while width < len(values):
        for start in range(0, len(values) - width, 2 * width):
            left, right = values[start : start + width], values[start + width : start + 2 * width]
            inversions += int((len(left) - np.searchsorted(left, right, side="right")).sum())
            values[start : start + 2 * width].sort(kind="stable")
        width *= 2
    return inversions
