"""Samples per second of training, end to end from Parquet and of its computation alone: fusions, tasks, table sizes.

    python benchmarks/train.py fusions --output benchmarks/results/train_fusions.json   # nine kinds, 2 tasks
    python benchmarks/train.py tasks --output benchmarks/results/train_tasks.json       # 2, 4, 8 tasks
    python benchmarks/train.py rows --output benchmarks/results/train_rows.json         # 26 tables of 1e4 to 1e7 rows

Jobs have 26 tables as in `jobs.py`, dim 16, batches of 4096, experts [256, 128], towers [64]. Each figure is `mtlrec
bench` of that job in a process of its own, which takes in turns steps from Parquet and steps from batches it keeps;
variants take turns, figures are medians over the rounds. `end_to_end` is the share of the computation's speed that is
left when rows come from files, `mfu` the share of a large product's, `product_tflops` that of each round: the last two
show what else ran on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import jobs
from benchmarks.report import processor
from mtlrec.config import JobConfig

BATCH = 4096
MIXED = [10**5, 10**6, 10**5, 10**4] * 6 + [10**7, 10**5]
"""As uneven as a log's columns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fusions", "tasks", "rows"))
    parser.add_argument("--root", type=Path, default=Path(".demo/bench_train"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    variants = {"fusions": fusions, "tasks": tasks, "rows": rows}[options.what](options.root)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for round_ in range(options.rounds):
        for name, job in variants.items():
            one = bench(job, options.steps, "train")
            found[name].append(one)
            said = f"{one['samples_per_s']:,.0f} samples/s, computation {one['compute_samples_per_s']:,.0f}"
            print(f"round {round_ + 1}, {name}: {said}", file=sys.stderr, flush=True)
    result = {
        "command": f"python benchmarks/train.py {' '.join(sys.argv[1:])}",
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "variants": {name: summary(rounds) for name, rounds in found.items()},
    }
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def fusions(root: Path) -> dict[str, JobConfig]:
    folder = files(root, MIXED)
    return {kind: jobs.job(folder, MIXED, kind) for kind in jobs.FUSIONS}


def tasks(root: Path) -> dict[str, JobConfig]:
    """MMoE has as many experts for any number, PLE two more for each."""
    folder = files(root, MIXED)
    kinds = ("mmoe", "ple")
    return {f"{kind}, {count}": jobs.job(folder, MIXED, kind, count) for kind in kinds for count in (2, 4, 8)}


def rows(root: Path) -> dict[str, JobConfig]:
    """PLE; the last are 17 GB of tables."""
    variants = {}
    for exponent in (4, 5, 6, 7):
        sizes = [10**exponent] * jobs.TABLES
        variants[f"1e{exponent}"] = jobs.job(files(root, sizes), sizes)
    return variants


def files(root: Path, sizes: list[int]) -> Path:
    return jobs.write_files(root, sizes, 512 * BATCH, BATCH)


def bench(job: JobConfig, steps: int, source: str, *words: str, threads: int | None = None) -> dict[str, Any]:
    """`mtlrec bench --json` of the job."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(yaml.safe_dump(job.dump()), encoding="utf-8")
        command = [sys.executable, "-m", "mtlrec", "bench", str(path), "--steps", str(steps), "--source", source]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        done = subprocess.run(
            [*command, "--json", *words], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{job.name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(one[key] for one in rounds)

    return {
        "samples_per_s": round(median("samples_per_s")),
        "compute_samples_per_s": round(median("compute_samples_per_s")),
        "end_to_end": statistics.median(one["samples_per_s"] / one["compute_samples_per_s"] for one in rounds),
        "step_p50_ms": median("step_p50_ms"),
        "step_p99_ms": median("step_p99_ms"),
        "mfu": median("mfu"),
        "product_tflops": [one["ceilings"]["tflops"] for one in rounds],
        "split_ms": {
            stage: statistics.median(one["split_ms"][stage] for one in rounds) for stage in rounds[0]["split_ms"]
        },
        "split_to_step": median("split_to_step"),
        "peak_gb": max(one["memory_gb"]["peak of the process"] for one in rounds),
    }


if __name__ == "__main__":
    main()
