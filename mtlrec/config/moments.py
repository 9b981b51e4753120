"""Mean, deviation and extremes of a stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """A part at a time, without loss of precision (Chan, Golub and LeVeque, 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, values: np.ndarray) -> None:
        """values [N] float64, all finite."""
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        both, apart = self.count + count, mean - self.mean
        with np.errstate(over="ignore"):  # then the deviation is infinite
            squares = float(((values - mean) ** 2).sum())
            self.squares += squares + float(np.square(apart)) * self.count * count / both
        self.mean += apart * count / both
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.count = both

    @property
    def std(self) -> float:
        """Of the values themselves, not of what they are a sample of; 0 where there is none."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0
