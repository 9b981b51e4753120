"""How many rows a task was measured on."""

from __future__ import annotations

from typing import Self

import torch

from mtlrec.metrics.metric import Metric, Sums, TaskRows, sum_over_ranks


class RowSums(Sums):
    """The rows in the task's space."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, rows: TaskRows) -> None:
        self.total += (rows.weight > 0).sum()

    def over_ranks(self) -> Self:
        total = type(self)(self.device)
        total.total = sum_over_ranks(self.total)
        return total


class NumRows(Metric):
    name, description, sums, of, is_count = "rows", "rows in the task's space", RowSums, "any", True

    @staticmethod
    def value(sums: RowSums) -> float:
        return sums.total.item()
