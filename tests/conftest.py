"""What every test shares: one thread per process, a patient Hypothesis, and no GPU tests without a GPU."""

import logging
import os
from collections.abc import Iterator
from typing import Any

# Before torch is imported, and inherited by the ranks that tests start: several processes on a few cores are quickest,
# and their sums always the same, with one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

# A deadline per example measures the machine's other tenants.
hypothesis.settings.register_profile("mtlrec", deadline=None)
hypothesis.settings.load_profile("mtlrec")


RANKS = (
    "tests/distributed/",
    "tests/integration/launches/",
    "tests/integration/test_bench",
    "tests/integration/test_diagnose",
    "tests/integration/test_keep_best",
    "tests/integration/test_rank_metric",
    "tests/unit/losses/",
    "tests/unit/evaluation/",
    "tests/unit/metrics/",
    "tests/unit/support/",
)
"""Tests that start ranks. One worker gets them all, so that two sets of ranks do not compete."""
ORDER = ("tests/integration/test_serving", "tests/integration/", "tests/unit/serving/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The ranks, then a file at a time. With pytest 9.2, `--dist loadgroup` of xdist 3.8 does not group."""
    from xdist.scheduler import LoadScopeScheduling

    class RanksThenFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ranks" if nodeid.startswith(RANKS) else nodeid.split("::")[0]

    return RanksThenFiles(config, log)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: _place(item.nodeid))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _place(nodeid: str) -> int:
    if nodeid.startswith(RANKS):
        return -1
    return next((place for place, start in enumerate(ORDER) if nodeid.startswith(start)), len(ORDER))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The lines that mtlrec logs during the test."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("mtlrec")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)
