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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


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
