"""What every test shares: one thread per process, a patient Hypothesis, and no GPU tests without a GPU."""

import logging
import os
from collections.abc import Iterator

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
    "tests/integration/test_rank_metric",
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two workers: one has the tests that start ranks, the other the rest, a file at a time, the longest first."""
    for item in items:
        file = item.nodeid.split("::")[0]
        is_ranks = file.startswith(RANKS) or item.get_closest_marker("distributed") is not None
        item.add_marker(pytest.mark.xdist_group("ranks" if is_ranks else file))
    order = ("tests/distributed/", "tests/integration/test_serving", "tests/integration/", "tests/unit/serving/")
    items.sort(key=lambda item: _place(item, order))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _place(item: pytest.Item, order: tuple[str, ...]) -> int:
    if any(mark.args == ("ranks",) for mark in item.iter_markers("xdist_group")):
        return -1
    return next((place for place, start in enumerate(order) if item.nodeid.startswith(start)), len(order))


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
