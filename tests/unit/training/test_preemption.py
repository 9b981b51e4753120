"""What the signals do to one process; test_preemption of the integration tests has the ranks."""

import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from tests.support.ranks import context, start_server


def asks_whether_to_stop(ready: Connection) -> None:
    """Sends "ready", then whether it was told to stop within three seconds."""
    import torch
    import torch.distributed as dist

    from mtlrec.distributed.liveness import Liveness
    from mtlrec.distributed.process_group import Ranks
    from mtlrec.training.preemption import Preemption

    store = dist.HashStore()
    ranks = Ranks(0, 1, 1, torch.device("cpu"), store, Liveness(store, 0, 1, 10))
    with Preemption(ranks) as preemption:
        ready.send("ready")
        due = []
        for _ in range(300):
            time.sleep(0.01)
            due.append(preemption.is_due())
    ready.send(True in due)


@pytest.mark.parametrize(("pauses", "is_due"), [([], False), ([0.2], True), ([0.2, 0.01], True), ([0.2, 1.3], None)])
def test_a_second_signal_ends_the_process_if_it_comes_later(pauses: list[float], is_due: bool | None) -> None:
    start_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=asks_whether_to_stop, args=(theirs,))
    process.start()
    assert process.pid is not None
    assert ours.recv() == "ready"
    for pause in pauses:
        time.sleep(pause)
        os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=30)
    assert process.exitcode == (-signal.SIGTERM if is_due is None else 0)
    assert is_due is None or ours.recv() == is_due
