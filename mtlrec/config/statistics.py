"""What `mtlrec prepare stats` finds out about the train split, and where a job takes it from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from mtlrec.config.base import Positive, Strict
from mtlrec.errors import LocatedError


@dataclass
class Moments:
    """Mean, deviation and extremes of a stream, without loss of precision (Chan, Golub and LeVeque, 1983)."""

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


class DenseStatistics(Strict):
    """Of a feature behind the transforms that come before standardize."""

    mean: float
    std: Positive


class SparseStatistics(Strict):
    """Boundaries that part a feature's numbers into equally large buckets."""

    boundaries: list[float]


class Statistics(Strict):
    dense: dict[str, DenseStatistics] = {}
    sparse: dict[str, SparseStatistics] = {}


def fill_in(tree: dict[str, Any]) -> None:
    """Puts what the file `data.statistics` knows into the features of a job's tree that leave it open.

    Raises LocatedError where the file cannot be used. Does nothing for a tree that is no job: validation says why.
    """
    data, features = tree.get("data"), tree.get("features")
    path = data.get("statistics") if isinstance(data, dict) else None
    if not isinstance(path, str) or not isinstance(features, dict):
        return
    open_ = [
        (section, feature)
        for section, step in (("dense", "standardize"), ("sparse", "bucketize"))
        if isinstance(features.get(section), list)
        for feature in features[section]
        if isinstance(feature, dict) and step in str(feature.get("transform")) and not _is_given(section, feature)
    ]
    if not open_:
        return
    statistics = _read(path)
    for section, feature in open_:
        found: BaseModel | None = getattr(statistics, section).get(feature.get("name"))
        if found is not None:
            feature |= found.model_dump()


def _is_given(section: str, feature: dict[str, Any]) -> bool:
    keys = ("mean", "std") if section == "dense" else ("boundaries",)
    return any(feature.get(key) is not None for key in keys)


def _read(path: str) -> Statistics:
    try:
        return Statistics.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise LocatedError(
            ("data", "statistics"), f"cannot be read ({reason}); `mtlrec prepare stats` writes it"
        ) from None
    except ValidationError:
        raise LocatedError(("data", "statistics"), "is not what `mtlrec prepare stats` writes") from None
