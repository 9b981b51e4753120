"""The guard of `make bench-check`: which ratios have fallen, without measuring any."""

import pytest

from benchmarks import guard

COMMITTED = {"ple to shared_bottom": 0.5, "two ranks to one": 1.1}


def test_a_ratio_a_tenth_below_has_fallen_and_one_above_has_not() -> None:
    now = {"ple to shared_bottom": 0.449, "two ranks to one": 1.0, "new": 1.0}
    assert guard.fallen(COMMITTED, now) == ["ple to shared_bottom"]
    lines = guard.compared(COMMITTED, now)
    assert [line.endswith("FELL") for line in lines] == [True, False]
    assert "0.449  was 0.500" in lines[0]
    assert guard.fallen(COMMITTED, COMMITTED | {"two ranks to one": 2.2}) == []


def test_what_is_no_longer_measured_is_noticed() -> None:
    with pytest.raises(KeyError):
        guard.fallen(COMMITTED, {"two ranks to one": 1.1})


def test_the_committed_ratios_are_of_the_kinds_that_are_measured() -> None:
    import json

    committed = json.loads(guard.RESULTS.read_text())["ratios"]
    assert {f"{kind} to {guard.BASELINE}" for kind in guard.KINDS[1:]} < set(committed)
