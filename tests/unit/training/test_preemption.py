"""What the signals do to one process; test_preemption of the integration tests has the ranks."""

import signal
import subprocess
import sys
import time

import pytest

PROCESS = """
import sys, time
import torch.distributed as dist
from mtlrec.distributed.liveness import Liveness
from mtlrec.distributed.process_group import Ranks
from mtlrec.training.preemption import Preemption
import torch
store = dist.HashStore()
ranks = Ranks(0, 1, 1, torch.device("cpu"), store, Liveness(store, 0, 1, 10))
with Preemption(ranks) as preemption:
    print("ready", flush=True)
    due = []
    for _ in range(300):
        time.sleep(0.01)
        due.append(preemption.is_due())
print("due" if True in due else "never", flush=True)
"""


@pytest.mark.parametrize(("pauses", "status"), [([], 0), ([0.2], 0), ([0.2, 0.01], 0), ([0.2, 1.3], -signal.SIGTERM)])
def test_a_second_signal_ends_the_process_if_it_comes_later(pauses: list[float], status: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROCESS], text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for pause in pauses:
        time.sleep(pause)
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert said == ("" if status else "never\n" if not pauses else "due\n")
