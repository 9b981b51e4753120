"""What long work shows."""

import pytest

from mtlrec.training import telemetry
from mtlrec.training.telemetry import watched


def test_long_work_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(watched(iter("abc"), 3, "evaluate", active=True)) == list("abc")
    assert not capsys.readouterr().err, "half a minute has not passed"
    monkeypatch.setattr(telemetry, "SECONDS_BETWEEN_LINES", 0)
    assert list(watched(iter("abc"), 3, "evaluate", active=True)) == list("abc")
    assert capsys.readouterr().err.splitlines() == ["evaluate: 1 of 3 batches", "evaluate: 2 of 3 batches"]
    assert list(watched(iter("abc"), 3, "evaluate", active=False)) == list("abc")
    assert not capsys.readouterr().err


def test_on_a_terminal_it_is_a_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(watched(iter("abc"), 3, "predict", active=True)) == list("abc")
    out, err = capsys.readouterr()
    assert "predict" in err
    assert not out
