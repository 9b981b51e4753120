"""What `mtlrec bench` reckons from what it has timed."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtlrec.benchmark.batches import BenchBatches
from mtlrec.benchmark.benchmark import _Bench, _divided, _mfu, _split_to_step, _Turn
from mtlrec.benchmark.ceilings import Ceilings
from mtlrec.distributed.process_group import process_group
from tests.support.toy import toy_job

NO_PROFILE: Any = None


def test_the_share_of_the_ceiling_is_of_each_turn() -> None:
    """The machine is half as fast in the second turn and the product with it; the last turn has one slow step more."""
    timed = [[0.1, 0.1, 0.9], [0.2, 0.2, 0.2], [0.1, 0.4, 0.4]]
    turns = [
        _Turn(seconds, [], NO_PROFILE, Ceilings(tflops, 1.0, 1.0))
        for seconds, tflops in zip(timed, (2.0, 1.0, 2.0), strict=True)
    ]
    assert _mfu(1e11, turns) == pytest.approx(0.5)


def test_the_stages_are_held_against_their_own_steps_and_the_profilers_cost() -> None:
    """The profiled steps met two row groups, the timed none; the profiler costs a tenth; a tenth is unaccounted for."""
    profiled, timed = [0.11, 0.11, 0.11, 0.33, 0.33], [0.1] * 5
    assert _split_to_step([0.1, 0.0782], profiled, timed) == pytest.approx(0.9 * 1.1)


def test_steps_are_divided_among_turns() -> None:
    assert _divided(12, 5) == [2, 2, 3, 2, 3]
    assert _divided(5, 5) == [1] * 5


def test_samples_of_all_ranks_count(tmp_path: Path) -> None:
    job = toy_job(data={"batch_size": 64})
    with process_group("cpu", 60) as ranks, closing(BenchBatches(job, ranks, "random")) as batches:
        bench = _Bench(job, ranks, batches, tmp_path)
        bench.ranks = replace(ranks, world_size=3)
        assert bench._rate([0.1, 0.3]) == pytest.approx(3 * 64 * 2 / 0.4)
