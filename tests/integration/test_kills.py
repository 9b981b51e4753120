"""Twenty times SIGKILL, at random points, through TorchX; `python -m tests.chaos.kills` is longer."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.kills import draw, survive

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_job_killed_twenty_times_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Another seed each time, unless MTLREC_CHAOS_SEED names the one of a run that failed."""
    seed = int(os.environ.get("MTLREC_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"MTLREC_CHAOS_SEED={seed}")
    planned = Counter(kill["where"] for kill in draw(20, seed))
    assert planned == {"save": 5, "backward": 5, "step": 5, "moment": 5}
    outcome = survive(tmp_path, 20, seed)
    assert outcome.differences == [], outcome.output[-10_000:]
    assert Counter(kill["where"] for kill in outcome.killed) == planned
    print(outcome.summary())
