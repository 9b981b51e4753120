"""The guard of `make bench-check`: which ratios have fallen, which rounds count, without measuring any."""

import json

import pytest

from benchmarks import guard, operators

COMMITTED = {"ple to a product": 0.5, "two ranks to one": 1.1}


def test_a_ratio_a_tenth_below_has_fallen_and_one_above_has_not() -> None:
    now = {"ple to a product": 0.449, "two ranks to one": 1.0, "new": 1.0}
    assert guard.fallen(COMMITTED, now) == ["ple to a product"]
    lines = guard.compared(COMMITTED, now)
    assert [line.endswith("FELL") for line in lines] == [True, False]
    assert "0.449  was 0.500" in lines[0]
    assert guard.fallen(COMMITTED, COMMITTED | {"two ranks to one": 2.2}) == []


def test_what_is_no_longer_measured_is_noticed() -> None:
    with pytest.raises(KeyError):
        guard.fallen(COMMITTED, {"two ranks to one": 1.1})


def test_the_committed_ratios_are_of_the_kinds_that_are_measured() -> None:
    found = {"samples_per_s": 2.0, "compute_samples_per_s": 4.0, "mfu": 0.5}
    ratios = guard.ratios_of(dict.fromkeys(guard.KINDS, found), found)
    for committed in json.loads(guard.RESULTS.read_text()).values():
        assert set(ratios) == set(committed["ratios"])
    assert set(ratios.values()) == {0.5}


QUIET, NOISY = guard.Round({"a": 1.0}, [0.18, 0.175]), guard.Round({"a": 0.4}, [0.18, 0.117])


def test_a_disturbed_round_is_taken_again(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = iter([QUIET, NOISY, QUIET, NOISY, QUIET])
    assert guard.quiet_rounds(lambda: next(rounds), 3) == [QUIET] * 3
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "round 1 of 3",
        "a round was disturbed",
        "round 2 of 3",
        "a round was disturbed",
        "round 3 of 3",
    ]


def test_a_busy_machine_is_not_compared() -> None:
    rounds = iter([QUIET, NOISY, NOISY, NOISY, QUIET])
    with pytest.raises(guard.Disturbed, match="nothing was compared"):
        guard.quiet_rounds(lambda: next(rounds), 2)
    assert next(rounds) is QUIET


def test_a_machine_without_committed_figures_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["guard.py"])
    monkeypatch.setattr(guard, "processor", lambda: "Some CPU")
    monkeypatch.setattr(operators, "count_all", operators.committed)
    monkeypatch.setattr(guard, "one_round", lambda _: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as end:
        guard.main()
    assert end.value.code == 2
    assert "no figures are committed of Some CPU" in capsys.readouterr().err


def test_a_count_that_rose_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    counts = operators.committed()
    name = next(iter(counts))
    assert operators.risen(counts, counts) == []
    fewer = counts | {name: counts[name] | {"total": counts[name]["total"] - 1}}
    assert operators.risen(counts, fewer) == []
    more = counts | {name: counts[name] | {"host_syncs": counts[name]["host_syncs"] + 1}}
    monkeypatch.setattr(operators, "count_all", lambda: more)
    with pytest.raises(SystemExit) as end:
        guard.check_operators(update=False)
    assert end.value.code == 1
    assert capsys.readouterr().out.startswith(f"{name}: {counts[name]['host_syncs'] + 1} host syncs, was")
    with pytest.raises(KeyError):
        operators.risen(counts, {})
