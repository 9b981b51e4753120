"""A table that fills the machine: two hundred million rows of 16 in two ranks of a machine with 24 GB, trained, saved,
resumed, and evaluated by two ranks again.

    python benchmarks/large_table.py --output benchmarks/results/large_table.json

Through torchrun, as a user's job would run. The table is row-wise, so each rank makes and keeps half of it and none
ever holds the whole. `background_checkpoints` is off: the copy would not fit beside it. Memory is the ranks' resident
sets, read ten times a second, without what the kernel caches of files.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="the checkpoint is made in the middle")
    parser.add_argument("--folder", type=Path, help="for data and checkpoints: the table's size twice")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = json.dumps(measure(options, Path(folder)), indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    batch, half = 1024, options.steps // 2
    rows = batch * options.ranks * options.steps * 2
    run([sys.executable, "-m", "mtlrec", "synth", "feed", "--output", str(folder / "feed"), "--rows", str(rows)], 1)
    settings = [
        f"data.root={folder / 'feed'}", f"data.batch_size={batch}", "data.valid=[]", "data.test=[]",
        f"tables.item.rows={options.rows}", f"tables.item.dim={options.dim}",
        "sharding.constraints={item: {types: [row_wise]}}", "sharding.ddr_gb=64",
        "train.background_checkpoints=false", "train.keep_checkpoints=1", "train.timeout_s=1200", "train.log_every=1",
    ]  # fmt: skip
    overrides = [word for setting in settings for word in ("--set", setting)]
    job = ["train", "feed", "--output", str(folder / "run"), *overrides]
    first = launch([*job, "--set", f"train.max_steps={half}"], options.ranks)
    saved = folder / "run" / "checkpoints"
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    second = launch([*job, "--set", f"train.max_steps={options.steps}", "--resume"], options.ranks)
    weights = options.rows * options.dim * 4
    return {
        "command": f"benchmarks/large_table.py --rows {options.rows} --dim {options.dim} --ranks {options.ranks}",
        "cores": os.cpu_count(),
        "table_gb": weights / 1e9,
        "checkpoint_gb": size / 1e9,
        "trained": first,
        "resumed": second,
        "peak_over_weights": sum(first["peak_rank_gb"]) / (weights / 1e9),
    }


def launch(words: list[str], ranks: int) -> dict[str, Any]:
    """Seconds and memory of a training under torchrun, by its log."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run([*torchrun, "-m", "mtlrec", *words], max((os.cpu_count() or 1) // ranks, 1))


def run(command: list[str], threads: int) -> dict[str, Any]:
    started, peaks, times = time.perf_counter(), {}, {}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, cwd=REPO, env=environment, text=True, stderr=subprocess.PIPE)
    assert process.stderr is not None
    watching = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peaks, watching), daemon=True)
    watcher.start()
    lines, losses, rates = [], [], []
    for line in process.stderr:
        lines.append(line)
        found = re.match(r"step (\d+)/(\d+) \| loss (\S+) .* ([\d,]+) samples/s", line)
        if found:
            times.setdefault("first_step_s", time.perf_counter() - started)
            times["last_step_s"] = time.perf_counter() - started
            losses.append(float(found[3]))
            rates.append(float(found[4].replace(",", "")))
    status = process.wait()
    watching.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(command)}\n{''.join(lines[-30:])}status {status}")
    times["end_s"] = time.perf_counter() - started
    return {
        **times,
        "steps": len(losses),
        "losses": [losses[0], losses[-1]] if losses else [],
        "median_samples_per_s": sorted(rates)[len(rates) // 2] if rates else None,
        "peak_rank_gb": sorted((peak for peak in peaks.values()), reverse=True)[: len(peaks)],
    }


def watch(root: int, peaks: dict[int, float], end: threading.Event) -> None:
    """Anonymous memory of the processes below `root` that hold over a gigabyte."""
    while not end.wait(0.1):
        for pid in descendants(root):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            size = int(found[1]) * 1024 / 1e9 if found else 0.0
            if size > 1:
                peaks[pid] = max(peaks.get(pid, 0.0), size)


def descendants(root: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


if __name__ == "__main__":
    main()
