"""What a step frees is there for the next: counted by the pages that the kernel has to bring."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from mtlrec.compat.allocator import keep_freed_memory
if {kept}:
    keep_freed_memory()
steps = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step = torch.ones(2**24), torch.ones(2**24)  # 64 MiB each
    del step
    steps.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(steps))
"""


def fewest_faults_of_a_step(kept: bool) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_later_step_gets_the_memory_of_the_one_before() -> None:
    kept, given_back = (fewest_faults_of_a_step(kept) for kept in (True, False))
    assert kept < given_back / 10, f"{kept} against {given_back}: is compat/allocator.py still needed?"
