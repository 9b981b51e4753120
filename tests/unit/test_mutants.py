"""The planted faults follow the code: each can still be planted, and its tests are there."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_every_fault_can_be_planted() -> None:
    command = [sys.executable, "tests/mutants/run.py", "--check"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
