"""Libraries are quiet while a verb runs, and as they were afterwards."""

import logging
import warnings

import pytest

from mtlrec.api.quiet import quiet


@quiet
def noisy(fails: bool = False) -> int:
    logging.getLogger("torchrec").warning("hidden")
    logging.getLogger().warning("Sharding spec not found")
    if fails:
        raise ValueError("as it is")
    return 3


def test_libraries_are_quiet_while_a_verb_runs(capsys: pytest.CaptureFixture[str]) -> None:
    root, torchrec = logging.getLogger(), logging.getLogger("torchrec")
    handler = logging.StreamHandler()
    root.addHandler(handler)
    before = (list(root.filters), torchrec.level, list(warnings.filters))
    try:
        assert noisy() == 3
        with pytest.raises(ValueError, match="as it is"):
            noisy(fails=True)
        assert capsys.readouterr().err == ""
        assert (list(root.filters), torchrec.level, list(warnings.filters)) == before
    finally:
        root.removeHandler(handler)
    assert noisy.__name__ == "noisy"
