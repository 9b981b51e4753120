"""How good is each recipe of a data set? Mean and standard deviation of the test metrics over seeds, as a table.

    python benchmarks/quality.py census --root data/census-income --jobs 2 --out benchmarks/results/census.json

Trains every `DATASET_KIND` recipe with each seed, one process and one thread per job, `--jobs` at a time. Finished
cells are kept in `--out` and not run again, so an interrupted table goes on where it stopped. The logistic regression
of `logistic_regression.py` on the same split and columns stands in the last row; where the data set knows its true
probabilities, so do the share of (Bayes AUC - 0.5) that was reached, below each AUC.
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtlrec.config_file import recipes
from mtlrec.data.prepare.writing import MIN_TEST_POSITIVES

HERE = Path(__file__).parent


def main() -> None:
    options = parse_arguments()
    results = read_results(options)
    cells = [(kind, seed) for kind in options.kinds for seed in range(options.seeds)]
    missing = [cell for cell in cells if key(*cell) not in results["cells"]]
    with ThreadPoolExecutor(options.jobs) as pool:
        for (kind, seed), metrics in zip(missing, pool.map(lambda cell: train(options, *cell), missing), strict=True):
            results["cells"][key(kind, seed)] = metrics
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{kind} seed {seed}: done", file=sys.stderr, flush=True)
    if results["logistic_regression"] is None:
        results["logistic_regression"] = logistic_regression(options)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(results, options)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="the first word of the recipes: census, kuairand or feed")
    parser.add_argument("--root", type=Path, required=True, help="where `mtlrec prepare` or `synth` wrote the data")
    parser.add_argument("--kinds", nargs="+", help="fusion kinds; default: every one that has a recipe")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="at a time, one thread each")
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every job")
    parser.add_argument("--max-train-rows", type=int, help="of the logistic regression")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.kinds = options.kinds or [
        name.removeprefix(f"{options.dataset}_") for name in recipes() if name.startswith(f"{options.dataset}_")
    ]
    return options


def read_results(options: argparse.Namespace) -> dict[str, Any]:
    """What --out holds already; a table of other settings is not mixed with this one."""
    schema = json.loads((options.root / "schema.json").read_text(encoding="utf-8"))
    settings = {"dataset": options.dataset, "rows": schema["rows"], "source": schema["source"], "set": options.set}
    if options.out.exists():
        results: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            raise SystemExit(f"{options.out}: holds {results['settings']}, not {settings}; name another --out")
        return results
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return {
        "command": shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]]),
        "hardware": f"{processor()}, {os.cpu_count()} cores, one thread per job",
        "settings": settings,
        "bayes_auc": schema.get("bayes_auc", {}),
        "logistic_regression": None,
        "cells": {},
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def key(kind: str, seed: int) -> str:
    return f"{kind}/{seed}"


def train(options: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    overrides = [f"data.root={options.root}", f"train.seed={seed}", *options.set]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mtlrec.cli", "train", f"{options.dataset}_{kind}", "--json", "-o", folder]
        command += [word for override in overrides for word in ("--set", override)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    metrics: dict[str, Any] = json.loads(done.stdout)["test"]
    return metrics


def logistic_regression(options: argparse.Namespace) -> Any:
    command = [sys.executable, str(HERE / "logistic_regression.py"), str(options.root), "--json"]
    if options.max_train_rows:
        command += ["--max-train-rows", str(options.max_train_rows)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def table(results: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Markdown: kinds down, tasks across."""
    cells = results["cells"]
    first = next(iter(cells.values()))
    tasks = list(first)
    lines = ["| fusion | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for kind in options.kinds:
        seeds = [cells[key(kind, seed)] for seed in range(options.seeds)]
        row = [shown([one[task] for one in seeds], results["bayes_auc"].get(task)) for task in tasks]
        lines.append(f"| {kind} | " + " | ".join(row) + " |")
    baseline = {row["label"]: row for row in results["logistic_regression"]}
    row = [f"{baseline[task]['auc']:.4f}" if task in baseline else "" for task in tasks]
    lines.append("| logistic regression | " + " | ".join(row) + " |")
    few = [task for task in tasks if first[task].get("positives", math.inf) < MIN_TEST_POSITIVES]
    if few:
        lines.append(f"\nUndecidable, under {MIN_TEST_POSITIVES} positives in the test split: {', '.join(few)}.")
    return lines


def shown(seeds: list[dict[str, Any]], bayes: float | None) -> str:
    name = "auc" if "auc" in seeds[0] else "mse"
    values = [seed[name] for seed in seeds]
    if None in values:  # one class only in the test split
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    text = f"{statistics.mean(values):.4f} ± {spread:.4f}" + (" (MSE)" if name == "mse" else "")
    share = f", {(statistics.mean(values) - 0.5) / (bayes - 0.5):.1%} of Bayes" if bayes else ""
    return text + share


if __name__ == "__main__":
    main()
