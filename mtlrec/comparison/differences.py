"""Is one architecture better than another on these tasks, as far as this many seeds can tell?

Runs of two architectures are paired by seed: the same order of rows and the same split, so that what a seed does to
both cancels. A gain is a mean of such differences with its interval by Student's t. Of a pair of architectures all
tasks are judged together, each at 0.05 divided by their number (Bonferroni), so that of pairs that do not differ one in
twenty is called different, not one in twenty tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
MOST_SEEDS = 10_000


class Gain(NamedTuple):
    """A mean difference and half the width of its interval, which is infinite of a single seed."""

    mean: float
    half_width: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves zero out, else 0."""
        return int(math.copysign(1, self.mean)) if abs(self.mean) > self.half_width else 0


def gain(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> Gain:
    """Of `ours` over `theirs`, seed by seed, higher being better.

    Raises ValueError for none or unequally many.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    count = len(differences)
    if count == 0:
        raise ValueError("a gain wants at least one seed of both")
    if count == 1:
        return Gain(float(differences[0]), math.inf)
    return Gain(float(differences.mean()), _half_width(float(differences.std(ddof=1)), count, level))


def _half_width(deviation: float, count: int, level: float) -> float:
    return float(stats.t.ppf(1 - level / 2, count - 1)) * deviation / math.sqrt(count)


def seeds_to_show(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> int | None:
    """How many seeds would show a difference as large and as scattered as this one.

    None: over ten thousand, or of one seed, which tells nothing of how it scatters.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    if len(differences) < 2:
        return None
    mean, deviation = abs(float(differences.mean())), float(differences.std(ddof=1))
    if mean <= _half_width(deviation, MOST_SEEDS, level):
        return None
    low, high = 2, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if mean > _half_width(deviation, middle, level) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Verdict:
    """On a pair of architectures, `first` and `second`.

    Attributes:
        better, worse: the tasks on which the first is shown to be better, worse
        open: those on which no difference is shown, with how many seeds would show one as large as was seen
        seeds: how many were compared
    """

    first: str
    second: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    open: Mapping[str, int | None]
    seeds: int

    @property
    def is_seesaw(self) -> bool:
        return bool(self.better and self.worse)

    @property
    def text(self) -> str:
        if self.is_seesaw:
            return (
                f"seesaw: {self.first} is better on {_listed(self.better)}, {self.second} on {_listed(self.worse)}"
                + self._rest()
            )
        for winner, loser, tasks in ((self.first, self.second, self.better), (self.second, self.first, self.worse)):
            if tasks and not self.open:
                return f"{winner} is better than {loser} on " + ("all tasks" if len(tasks) > 1 else tasks[0])
            if tasks:
                return f"{winner} is better than {loser} on {_listed(tasks)}" + self._rest()
        return (
            f"no difference between {self.first} and {self.second} that {seeds_in_words(self.seeds)} can show"
            + self._more()
        )

    def _rest(self) -> str:
        return f"; no difference shown on {_listed(tuple(self.open))}" if self.open else ""

    def _more(self) -> str:
        enough = {task: seeds for task, seeds in self.open.items() if seeds is not None}
        if not enough:
            return ""
        task = min(enough, key=lambda name: enough[name])
        return f"; {enough[task]} would show one on {task} if it is as large as it looks"


def judge(
    first: str, second: str, ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]
) -> Verdict:
    """Args: by task, the scores of the first's and the second's seeds, paired and higher being better."""
    level = LEVEL / len(ours)
    signs = {task: gain(ours[task], theirs[task], level).sign for task in ours}
    return Verdict(
        first,
        second,
        better=tuple(task for task, sign in signs.items() if sign > 0),
        worse=tuple(task for task, sign in signs.items() if sign < 0),
        open={task: seeds_to_show(ours[task], theirs[task], level) for task, sign in signs.items() if sign == 0},
        seeds=len(next(iter(ours.values()))),
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def seeds_in_words(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
