"""SIGKILL at random points, through TorchX; `python -m tests.chaos.kills` is longer."""

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.kills import draw, survive

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.mark.parametrize(
    "kills",
    [2, pytest.param(20, marks=pytest.mark.nightly(reason="two and a half minutes; two kills go the same way"))],
)
def test_a_killed_job_ends_as_if_nothing_had_been(kills: int, tmp_path: Path) -> None:
    """Another seed each time, unless MTLREC_CHAOS_SEED names the one of a run that failed."""
    seed = int(os.environ.get("MTLREC_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"MTLREC_CHAOS_SEED={seed}")
    planned = Counter(kill["where"] for kill in draw(kills, seed))
    places = ("save", "backward", "step", "moment")[:kills]
    assert planned == dict.fromkeys(places, kills // len(places))
    outcome = survive(tmp_path, draw(kills, seed))
    assert outcome.differences == [], outcome.output[-10_000:]
    assert Counter(kill["where"] for kill in outcome.killed) == planned
    print(outcome.summary())


@pytest.mark.nightly(reason="a minute; test_liveness names a frozen rank, and kills start all ranks again")
def test_a_rank_that_freezes_is_named_and_all_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After train.timeout_s; torchrun then kills it."""
    monkeypatch.setenv("MTLREC_CHAOS_SIGNAL", "SIGSTOP")
    freeze = {"rank": 1, "where": "backward", "after": 12, "fraction": 0.5, "delay_s": 0.0}
    outcome = survive(tmp_path, [freeze], "train.timeout_s=6")
    assert outcome.differences == [], outcome.output[-10_000:]
    assert len(outcome.killed) == 1
    said = outcome.output
    assert "a collective took longer than train.timeout_s (6 s): rank 1 (process " in said
    assert re.search(r"rank 1 \(process \d+ on \S+\) does not answer; rank 0 at \w+\.py:\d+ \(\w+\) in ", said)
    assert "rank 0 at liveness.py" not in said
