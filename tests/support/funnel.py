"""A funnel's labels with all that may be wrong with them, and a plain loop that says what each row is to a task."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mtlrec.data.features.spaces import SampleSpaces

# click -> buy -> review; like trained where column 3 is 1; ratio (a regression) where buy is 1, made consistent
LABELS, PARENTS = [0, 1, 2, 4, 5], [None, 0, 1, None, None]
CONDITIONS = [None, None, None, ("holds", ("column", 3)), ("holds", ("task", 1))]
IS_FLAG = [True, True, True, True, False]


def spaces_of(is_conditional: bool, row_weights: Sequence[int | None] = (None,) * 5) -> SampleSpaces:
    return SampleSpaces(LABELS, PARENTS, CONDITIONS, is_conditional, row_weights, IS_FLAG)


def rows(count: int, seed: int = 0, known_share: float = 0.85) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels [B, 7] that do not respect the funnel, some of them unknown, and whether a row is no padding. The last
    column is one of row weights, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, 7, generator=generator) < 0.5).float()
    labels[:, 5] = torch.rand(count, generator=generator) * 3
    labels[:, 6] = (torch.rand(count, generator=generator) * 3 - 1).clamp(min=0)
    known = (torch.rand(count, 7, generator=generator) < known_share).float()
    weights = (torch.rand(count, generator=generator) > 0.1).float()
    return labels * known, known, weights


class ByHand(NamedTuple):
    targets: np.ndarray
    space: np.ndarray
    entire: np.ndarray
    weights: np.ndarray
    faults: np.ndarray


def by_hand(
    labels: np.ndarray,
    known: np.ndarray,
    mask: np.ndarray,
    is_conditional: bool,
    row_weights: Sequence[int | None] = (None,) * 5,
) -> ByHand:
    """One row and one task at a time."""
    count = len(labels)
    targets, space, entire, weights, inherited = (np.zeros((count, 5)) for _ in range(5))
    faults = np.zeros((2, 5), int)
    for i in range(count):
        if mask[i] == 0:
            continue
        for task in range(5):
            label, is_known = labels[i, LABELS[task]], known[i, LABELS[task]] == 1
            condition, parent, column = CONDITIONS[task], PARENTS[task], row_weights[task]
            weights[i, task] = 1 if column is None else labels[i, column] * known[i, column]
            inside = True
            if condition == CONDITIONS[3]:
                inside = known[i, 3] == 1 and labels[i, 3] == 1
            elif condition == CONDITIONS[4]:  # bought, and clicked before
                inside = known[i, 1] == 1 and known[i, 0] == 1 and labels[i, 1] == 1 and labels[i, 0] == 1
            if parent is None:
                targets[i, task] = label
                inherited[i, task] = inside and is_known
                entire[i, task] = space[i, task] = inherited[i, task] and weights[i, task] > 0
                continue
            above = targets[i, parent]
            targets[i, task] = label * above
            inside = inside and inherited[i, parent] == 1
            has_weight = weights[i, task] > 0
            faults[1, task] += inside and not is_known and above == 1
            faults[0, task] += inside and is_known and has_weight and label == 1 and above == 0
            inherited[i, task] = inside and (is_known or above == 0)
            entire[i, task] = inherited[i, task] and has_weight
            space[i, task] = (entire[i, task] and is_known and above == 1) if is_conditional else entire[i, task]
    return ByHand(targets, space, entire, weights, faults)
