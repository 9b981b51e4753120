"""gloo still raises a plain RuntimeError for a rank that did not come and for one that has ended."""

import gc
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from mtlrec.compat.gloo_errors import is_ended_peer, is_timeout


def pair(timeout_s: float) -> list[dist.ProcessGroupGloo]:
    """Two ranks of a group, each of which a thread of this process has joined."""
    store, groups = dist.HashStore(), {}

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=timeout_s))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [groups[0], groups[1]]


def sum_fails(group: dist.ProcessGroupGloo) -> RuntimeError:
    with pytest.raises(Exception) as raised:
        group.allreduce([torch.ones(1)]).wait()
    assert type(raised.value) is RuntimeError, "compat/gloo_errors.py can read classes in place of texts"
    return raised.value


def test_a_rank_that_does_not_come_is_a_timeout() -> None:
    first, second = pair(timeout_s=0.5)
    error = sum_fails(first)
    assert is_timeout(error)
    assert not is_ended_peer(error)
    assert second.rank() == 1  # which has not ended


def test_a_rank_that_has_ended_is_told() -> None:
    groups = pair(timeout_s=20)
    del groups[1]
    gc.collect()
    error = sum_fails(groups[0])
    assert is_ended_peer(error)
    assert not is_timeout(error)
