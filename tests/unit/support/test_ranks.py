"""The server that ranks are forked from."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.support.ranks import PRELOADED, run_ranks

pytestmark = pytest.mark.distributed


def look_at_server() -> tuple[int, bool, list[str]]:
    """Its number of threads, whether it has a process group, and which modules it lacks, as seen by a rank."""
    import torch.distributed as dist

    missing = [name for name in PRELOADED if name not in sys.modules]
    return len(list(Path(f"/proc/{os.getppid()}/task").iterdir())), dist.is_initialized(), missing


def test_server_has_imported_everything_and_has_no_thread() -> None:
    """A fork with a thread could inherit a lock that nobody releases."""
    (found,) = run_ranks(1, look_at_server)
    assert found == (1, False, [])


def test_ranks_have_the_environment_of_their_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("MTLREC_TEST", value)
        assert run_ranks(1, os.getenv, "MTLREC_TEST") == [value]


def test_ranks_take_any_number_of_tensors() -> None:
    tensors = [torch.full((1,), index) for index in range(300)]
    assert run_ranks(1, total, tensors) == [sum(range(300))]


def total(tensors: list[torch.Tensor]) -> int:
    return int(torch.cat(tensors).sum())
