"""A comparison: the same grid of learning rates for every architecture, chosen on the valid split, then the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
from scipy.stats import rankdata

from mtlrec.comparison.candidates import BASELINE, Architecture, Candidate
from mtlrec.comparison.differences import Gain, Verdict, gain, judge
from mtlrec.comparison.trials import Metrics, Result, Trial, Trials
from mtlrec.config.tasks import MIN_TEST_POSITIVES
from mtlrec.errors import ConfigError
from mtlrec.metrics import JUDGES, METRICS


class Watcher(Protocol):
    """Is told what happens; `kept` is what was finished before."""

    def ended(self, trial: Trial, result: Result, kept: bool) -> None: ...

    def chose(self, candidate: str, factor: float) -> None: ...


@dataclass(frozen=True)
class Comparison:
    """Finished: what every architecture reached with every seed, at its own learning rates.

    Attributes:
        factors: by candidate, what its learning rates were multiplied with
        tuning: the results of the first seeds by candidate and factor
        results: by candidate, a result for each of `seeds`
    """

    candidates: Sequence[Architecture]
    seeds: list[int]
    factors: dict[str, float]
    tuning: dict[str, dict[float, list[Result]]]
    results: dict[str, list[Result]]
    metric: str = "auc"

    @property
    def tasks(self) -> dict[str, str]:
        """The metric by which each task is judged: the comparison's, or a regression's mean squared error."""
        metrics = self._first.metrics["test"]
        return {task: judge_of(of, self.metric) for task, of in metrics.items()}

    @property
    def undecidable(self) -> list[str]:
        """Tasks with so few positives in the test split that they are shown, not judged."""
        return few_positives(self._first.metrics["test"])

    @property
    def without_figure(self) -> list[str]:
        """Those of which some training has no figure, for all its rows have the same label."""
        return [
            task
            for task in self.tasks
            if not all(np.isfinite(self.values(one.name, task)).all() for one in self.candidates)
        ]

    @property
    def judged(self) -> list[str]:
        return [task for task in self.tasks if task not in {*self.undecidable, *self.without_figure}]

    @property
    def not_judged(self) -> list[str]:
        """Why: a sentence each."""
        one_label = self.without_figure
        few = [task for task in self.undecidable if task not in one_label]
        why = (("too few positives", few), ("rows of one label alone", one_label))
        return [f"Not judged, for {reason} in the test split: {', '.join(tasks)}." for reason, tasks in why if tasks]

    @property
    def _first(self) -> Result:
        return self.results[self.candidates[0].name][0]

    @property
    def at_the_edge(self) -> list[str]:
        """What chose the smallest or the largest of the learning rates, beyond which better ones may lie."""
        return [
            name
            for name, factor in self.factors.items()
            if len(self.tuning[name]) > 1 and factor in (min(self.tuning[name]), max(self.tuning[name]))
        ]

    def values(self, candidate: str, task: str) -> list[float]:
        """On the test split, a seed each."""
        return [result.metrics["test"][task][self.tasks[task]] for result in self.results[candidate]]

    def scores(self, candidate: str, task: str) -> list[float]:
        """The same, higher being better."""
        sign = 1 if JUDGES[self.tasks[task]] == "highest" else -1
        return [sign * value for value in self.values(candidate, task)]

    @property
    def baseline(self) -> str:
        """What gains are over: the first that shares nothing but the tables, or else the first of all."""
        return next((one.name for one in self.candidates if one.fusion == BASELINE), self.candidates[0].name)

    def gain(self, candidate: str, task: str) -> Gain:
        """Over the baseline."""
        return gain(self.scores(candidate, task), self.scores(self.baseline, task))

    def verdicts(self) -> list[Verdict]:
        """On every pair, the best by rank against the others first; none where no task is judged."""
        if not self.judged:
            return []
        return [self.verdict(one, other) for (one, _), (other, _) in combinations(self.ranking(), 2)]

    def shown(self, candidate: str, task: str) -> int:
        """1 where the verdict on the candidate and the baseline has it better on the task, -1 worse, 0 neither."""
        if task not in self.judged or candidate == self.baseline:
            return 0
        found = self.verdict(candidate, self.baseline)
        return (task in found.better) - (task in found.worse)

    def verdict(self, first: str, second: str) -> Verdict:
        ours, theirs = ({task: self.scores(name, task) for task in self.judged} for name in (first, second))
        return judge(first, second, ours, theirs)

    def ranking(self) -> list[tuple[str, float]]:
        """The best first, with their mean rank over the judged tasks (1: best on each); alike where none is judged."""
        names = [one.name for one in self.candidates]
        if not self.judged:
            return [(name, 1.0) for name in names]
        means = [[-float(np.mean(self.scores(name, task))) for name in names] for task in self.judged]
        ranks = np.mean([rankdata(of_task) for of_task in means], axis=0)
        return sorted(zip(names, ranks.tolist(), strict=True), key=lambda pair: pair[1])


def compare(
    trials: Trials[Candidate],
    factors: Sequence[float],
    seeds: Sequence[int],
    watcher: Watcher,
    metric: str = "auc",
    tuning_seeds: int = 1,
) -> Comparison:
    """Trains what is not trained yet.

    Args:
        tuning_seeds: with how many of the seeds, the first ones, every factor is tried

    Raises ConfigError where every learning rate of a candidate diverges, or a seed does at the chosen one.
    """
    candidates, seeds = list(trials.candidates.values()), list(seeds)
    tuning: dict[str, dict[float, dict[int, Result]]] = {
        one.name: {factor: {} for factor in factors} for one in candidates
    }

    def tuned(trial: Trial, result: Result, kept: bool) -> None:
        tuning[trial.candidate][trial.factor][trial.seed] = result
        watcher.ended(trial, result, kept)

    first = seeds[:tuning_seeds]
    trials.run([Trial(one.name, factor, seed) for seed in first for one in candidates for factor in factors], tuned)
    tried = {
        name: {factor: [of[seed] for seed in first] for factor, of in by_factor.items()}
        for name, by_factor in tuning.items()
    }
    chosen = {name: choose(name, results, metric) for name, results in tried.items()}
    for name, factor in chosen.items():
        watcher.chose(name, factor)
    results = {name: dict(tuning[name][factor]) for name, factor in chosen.items()}

    def ended(trial: Trial, result: Result, kept: bool) -> None:
        if result.diverged:
            raise ConfigError(f"{trial}: {result.diverged}; give lower factors (--learning-rates)")
        results[trial.candidate][trial.seed] = result
        watcher.ended(trial, result, kept)

    # Seeds outermost: what an interruption leaves is a whole comparison, of fewer seeds.
    left = seeds[tuning_seeds:]
    trials.run([Trial(one.name, chosen[one.name], seed) for seed in left for one in candidates], ended)
    in_order = {name: [by_seed[seed] for seed in seeds] for name, by_seed in results.items()}
    return Comparison(candidates, seeds, chosen, tried, in_order, metric)


def choose(candidate: str, results: Mapping[float, Sequence[Result]], metric: str = "auc") -> float:
    """The factor with the best mean rank over the tasks of the valid split, by the means over its seeds; of equals the
    nearest to 1. One with which a seed diverges is not taken, and one with which a seed ends with a task that tells no
    row from another only where all do.

    Ranks, because a task's metric has no common scale with another's. A task without a figure has no say, nor one with
    too few positives in the test split to be judged. Raises ConfigError where all diverged.
    """
    usable = {factor: of for factor, of in results.items() if not any(result.diverged for result in of)}
    usable = {factor: of for factor, of in usable.items() if not any(map(has_dead_task, of))} or usable
    if not usable:
        last = next(result for result in next(iter(results.values())) if result.diverged)
        raise ConfigError(f"{candidate}: diverges at every learning rate: {last.diverged}; give lower factors")
    metrics = next(iter(usable.values()))[0].metrics
    tasks = [task for task in metrics["valid"] if task not in few_positives(metrics["test"])]
    scores = [[_mean_score(of, task, metric) for of in usable.values()] for task in tasks]
    by_task = [rankdata(of_task) for of_task in scores if np.isfinite(of_task).all()]
    ranks = dict(zip(usable, np.mean(by_task or [[1.0] * len(usable)], axis=0), strict=True))
    return min(ranks, key=lambda factor: (ranks[factor], abs(np.log(factor))))


def has_dead_task(result: Result) -> bool:
    """Whether a task has an AUC of exactly a half, as one that says the same of all rows."""
    return any(of.get("auc") == 0.5 for of in result.metrics["valid"].values())


def few_positives(metrics: Metrics) -> list[str]:
    """The tasks of which these figures, of a test split, can decide nothing."""
    return [task for task, of in metrics.items() if of.get("positives", MIN_TEST_POSITIVES) < MIN_TEST_POSITIVES]


def _mean_score(results: Sequence[Result], task: str, metric: str) -> float:
    return float(np.mean([score(result.metrics["valid"][task], metric) for result in results]))


def score(metrics: Mapping[str, float], metric: str) -> float:
    """Of one task, lower being better."""
    name = judge_of(metrics, metric)
    return -metrics[name] if JUDGES[name] == "highest" else metrics[name]


def judge_of(metrics: Mapping[str, float], metric: str) -> str:
    """The metric that judges a task: the one asked for, or the task's first."""
    return metric if metric in metrics else next(name for name in METRICS if name in metrics)
