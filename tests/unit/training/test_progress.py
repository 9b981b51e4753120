"""What long work shows."""

import pytest

from mtlrec.training import progress
from mtlrec.training.progress import progress_bars, watched


def test_long_work_logs_how_far_it_is(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    assert list(watched(iter("abc"), 3, "evaluate", active=True)) == list("abc")
    assert not logged, "half a minute has not passed"
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    assert list(watched(iter("abc"), 3, "evaluate", active=True)) == list("abc")
    assert logged == ["evaluate: 1 of 3 batches", "evaluate: 2 of 3 batches"]
    assert list(watched(iter("abc"), 3, "evaluate", active=False)) == list("abc")
    assert len(logged) == 2


def test_on_a_terminal_it_is_a_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(watched(iter("abc"), 3, "predict", active=True)) == list("abc")
    assert capsys.readouterr().err == "", "nobody asked for bars"
    with progress_bars(True):
        assert list(watched(iter("abc"), 3, "predict", active=True)) == list("abc")
    out, err = capsys.readouterr()
    assert "predict" in err
    assert not out
