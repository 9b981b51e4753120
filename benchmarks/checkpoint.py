"""How long a save keeps training waiting, beside how long it takes until the checkpoint is complete.

    python benchmarks/checkpoint.py --json
    torchrun --nproc_per_node 2 benchmarks/checkpoint.py

The feed's AdaTT with tables of so many rows, their optimizer state included; saves one after another, so that the
memory that copies go to is there already, as in a run after its first checkpoint. `blocked_s` is until `save` returns,
`complete_s` until `wait` does, `foreground_s` what a save takes that is not in the background; `share_blocked` is the
first of them over the last. The two ways take turns; medians over the rounds, the first round left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import JobState
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config.file import load_config
from mtlrec.data.order import Position
from mtlrec.distributed.process_group import Ranks, process_group
from mtlrec.training.optim import Optimizers
from mtlrec.training.sharded import build_sharded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the item table")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    quiet_libraries()
    with process_group("cpu") as ranks, tempfile.TemporaryDirectory() as folder:
        result = measure(options, ranks, Path(folder))
        if ranks.is_first:
            text = json.dumps(result, indent=1)
            print(text if options.json else f"{result}")
            if options.output:
                options.output.write_text(text + "\n")


def measure(options: argparse.Namespace, ranks: Ranks, folder: Path) -> dict[str, Any]:
    job = load_config("feed", [f"tables.item.rows={options.rows}", "train.device=cpu"])
    model = build_sharded(job, ranks)
    optimizers = Optimizers(model.module, job, 1)
    optimizers.materialise()
    shared = [str(folder)]
    torch.distributed.broadcast_object_list(shared)
    ways = {
        way: Checkpoints(Path(shared[0]) / way, 1, in_background=way == "background")
        for way in ("background", "foreground")
    }
    blocked, complete, foreground = [], [], []
    for step in range(options.rounds + 1):
        state = JobState(step, Position(), "", ranks.world_size, {}, job.dump(), model.plan)
        tensors = {"model": model.state(), "optimizer": optimizers.state()}
        torch.distributed.barrier()
        started = time.perf_counter()
        ways["background"].save(tensors, state)
        blocked.append(time.perf_counter() - started)
        ways["background"].wait()
        complete.append(time.perf_counter() - started)
        torch.distributed.barrier()
        started = time.perf_counter()
        ways["foreground"].save(tensors, state)
        foreground.append(time.perf_counter() - started)
    size = sum(path.stat().st_size for path in Path(shared[0]).glob("background/checkpoints/*/*"))
    torch.distributed.barrier()
    return {
        "ranks": ranks.world_size,
        "gb": size / 1e9,
        "blocked_s": statistics.median(blocked[1:]),
        "complete_s": statistics.median(complete[1:]),
        "foreground_s": statistics.median(foreground[1:]),
        "share_blocked": statistics.median(blocked[1:]) / statistics.median(foreground[1:]),
    }


if __name__ == "__main__":
    main()
