"""Maps from a model's logits to probabilities that are as often right as they say, fitted after training.

Fitted per binary task on p(task) over all impressions, from the histogram that the metrics keep (`metrics/binary.py`),
and kept beside the weights they belong to: `checkpoints/step_N/calibration.json`. `predict` applies what is there.
Tasks are mapped one by one, so p(child) <= p(parent) is no longer given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit
from torch import Tensor

from mtlrec.config.base import Strict
from mtlrec.errors import CheckpointError
from mtlrec.io import one_line, write_text
from mtlrec.metrics.binary import bin_logits
from mtlrec.run_folder import CALIBRATION

Method = Literal["platt", "isotonic"]
SMALLEST = 1e-7
"""Of the probabilities an isotonic map may give: a 0 would be infinitely wrong once."""


class Map(Strict):
    """Platt: sigmoid(slope * logit + offset). Isotonic: linear between (logits, probabilities), flat outside."""

    slope: float = 1.0
    offset: float = 0.0
    logits: list[float] = []
    probabilities: list[float] = []

    @model_validator(mode="after")
    def _rises(self) -> Map:
        if len(self.logits) != len(self.probabilities) or self.logits != sorted(self.logits):
            raise ValueError("logits rise, and each has its probability")
        return self

    def __call__(self, logits: Tensor) -> Tensor:
        if not self.logits:
            return torch.sigmoid(self.slope * logits + self.offset)
        mapped = np.interp(logits.double().cpu().numpy(), self.logits, self.probabilities)
        return torch.from_numpy(np.asarray(mapped)).to(logits)


class Calibration(Strict):
    """A map per binary task, fitted on `rows`; a task without one keeps its own probabilities."""

    method: Method
    rows: int
    maps: dict[str, Map]

    def of(self, task: str) -> Callable[[Tensor], Tensor]:
        return self.maps.get(task, torch.sigmoid)

    def write(self, checkpoint: Path) -> None:
        write_text(checkpoint / CALIBRATION, self.model_dump_json(indent=1) + "\n")

    @staticmethod
    def read(checkpoint: Path) -> Calibration | None:
        """None where none was fitted. Raises CheckpointError for a file that is no calibration."""
        path = checkpoint / CALIBRATION
        if not path.is_file():
            return None
        try:
            return Calibration.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a calibration ({one_line(error)}); fit it again, or remove it"
            ) from None


def fit(method: Method, histogram: Tensor) -> Map | None:
    """histogram [2, N] of negatives and positives by logit; None where one of the two is missing."""
    counts = histogram.cpu().numpy()
    if not counts.sum(axis=1).all():
        return None
    used = counts.sum(axis=0) > 0
    logits, negatives, positives = bin_logits(torch.device("cpu")).numpy()[used], counts[0, used], counts[1, used]
    return _platt(logits, negatives, positives) if method == "platt" else _isotonic(logits, negatives, positives)


def _platt(logits: np.ndarray, negatives: np.ndarray, positives: np.ndarray) -> Map:
    """Logistic regression on the logit, a term for each bin, with Platt's targets (1999), just short of 0 and 1: rows
    which the logit separates have a finite answer too."""
    low, high = 1 / (negatives.sum() + 2), (positives.sum() + 1) / (positives.sum() + 2)
    weight = negatives + positives
    target = (negatives * low + positives * high) / weight

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * logits + parameters[1]
        loss = weight * (np.logaddexp(0, z) - target * z)
        slope = weight * (expit(z) - target)
        return loss.sum() / weight.sum(), np.array([(slope * logits).sum(), slope.sum()]) / weight.sum()

    found = minimize(loss_and_gradient, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9})
    return Map(slope=float(found.x[0]), offset=float(found.x[1]))


def _isotonic(logits: np.ndarray, negatives: np.ndarray, positives: np.ndarray) -> Map:
    """Pool adjacent violators (Zadrozny and Elkan 2002); of every level its two ends are kept."""
    weights = negatives + positives
    level = isotonic_regression(positives / weights, weights=weights).x
    first = np.concatenate([[True], level[1:] != level[:-1]])
    last = np.concatenate([first[1:], [True]])
    ends = first | last
    probabilities = level[ends].clip(SMALLEST, 1 - SMALLEST)
    return Map(logits=logits[ends].tolist(), probabilities=probabilities.tolist())
