"""Verdicts on pairs of architectures: against scipy's own paired test, and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mtlrec.comparison.differences import Gain, gain, judge, seeds_to_show


def test_a_gain_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(0.7, 0.01, 8)
    ours = theirs + rng.normal(0.008, 0.003, 8)
    found = gain(ours.tolist(), theirs.tolist())
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(interval))
    assert found.sign == 1
    assert gain(theirs.tolist(), ours.tolist()).sign == -1


def test_one_seed_shows_nothing() -> None:
    assert gain([0.9], [0.1]) == Gain(0.8, math.inf)
    assert gain([0.9], [0.1]).sign == 0
    assert seeds_to_show([0.9], [0.1]) is None
    with pytest.raises(ValueError, match="at least one seed"):
        gain([], [])


def test_equal_scores_are_no_difference() -> None:
    assert gain([0.5, 0.6], [0.5, 0.6]).sign == 0
    assert seeds_to_show([0.5, 0.6], [0.5, 0.6]) is None


def test_as_many_seeds_as_it_says_show_the_difference_and_one_fewer_do_not() -> None:
    ours, theirs = [0.71, 0.70, 0.72, 0.69], [0.70, 0.705, 0.70, 0.69]
    assert gain(ours, theirs).sign == 0
    wanted = seeds_to_show(ours, theirs)
    assert wanted is not None
    differences = np.subtract(ours, theirs)
    mean, deviation = differences.mean(), differences.std(ddof=1)

    def shown(count: int) -> bool:
        return bool(mean > stats.t.ppf(0.975, count - 1) * deviation / math.sqrt(count))

    assert shown(wanted)
    assert not shown(wanted - 1)


SCATTER = np.array([-1.0, 1.0, -0.5, 0.5, 0.0]) * 0.001


def scores(**means: float) -> dict[str, list[float]]:
    return {task: (mean + SCATTER).tolist() for task, mean in means.items()}


SECOND = {task: [0.7] * 5 for task in ("click", "like")}


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        (scores(click=0.75, like=0.72), "ple is better than mmoe on all tasks"),
        (scores(click=0.65, like=0.68), "mmoe is better than ple on all tasks"),
        (scores(click=0.75, like=0.68), "seesaw: ple is better on click, mmoe on like"),
        (scores(click=0.75, like=0.7), "ple is better than mmoe on click; no difference shown on like"),
        (scores(click=0.7, like=0.65), "mmoe is better than ple on like; no difference shown on click"),
        (scores(click=0.7, like=0.7), "no difference between ple and mmoe that 5 seeds can show"),
        (
            scores(click=0.7005, like=0.7001),
            "no difference between ple and mmoe that 5 seeds can show; "
            "16 would show one on click if it is as large as it looks",
        ),
    ],
)
def test_the_verdict_says_who_is_better_on_what(ours: dict[str, list[float]], text: str) -> None:
    found = judge("ple", "mmoe", ours, SECOND)
    assert found.text == text
    assert found.is_seesaw == text.startswith("seesaw")


def test_the_level_of_a_verdict_is_shared_by_its_tasks() -> None:
    """Just shown alone, not among twenty."""
    ours = (0.7 + 0.001 + SCATTER).tolist()
    assert judge("a", "b", {"click": ours}, {"click": [0.7] * 5}).better == ("click",)
    many = {f"task{index}": ours for index in range(20)}
    assert judge("a", "b", many, {task: [0.7] * 5 for task in many}).better == ()


def test_a_verdict_on_a_single_task_names_it() -> None:
    assert judge("a", "b", scores(click=0.8), {"click": [0.7] * 5}).text == "a is better than b on click"
