"""How good is each recipe of a data set? Mean and standard deviation of the test metrics over seeds, as a table.

    python benchmarks/quality.py feed --root data/feed --seeds 1 --jobs 2 --output benchmarks/results/feed.json

Trains every `DATASET_KIND` recipe with each seed, `--jobs` at a time. Finished trainings are kept in `--trials` and not
run again, so an interrupted table goes on where it stopped. The logistic regression
of `logistic_regression.py` on the same split and columns stands in the last row; where the data set knows its true
probabilities, so do the share of (Bayes AUC - 0.5) that was reached, below each AUC.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import report
import trials

from mtlrec.config.file import recipes
from mtlrec.config.tasks import MIN_TEST_POSITIVES

HERE = Path(__file__).parent


def main() -> None:
    options = parse_arguments()
    schema = json.loads((options.root / "schema.json").read_text(encoding="utf-8"))
    overrides = [f"data.root={options.root}", *options.set]
    candidates = [trials.candidate(kind, f"{options.dataset}_{kind}", overrides) for kind in options.kinds]
    results = {
        "command": shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]]),
        "hardware": trials.hardware(options),
        "settings": {
            "dataset": options.dataset,
            "rows": schema["rows"],
            "source": schema["source"],
            "set": options.set,
        },
        "bayes_auc": schema.get("bayes_auc", {}),
        "logistic_regression": logistic_regression(options),
        "cells": trials.test_metrics(candidates, options),
    }
    report.write(results, options.output)
    print("\n".join(table(results, options)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="the first word of the recipes: census, kuairand or feed")
    parser.add_argument("--root", type=Path, required=True, help="where `mtlrec prepare` or `synth` wrote the data")
    parser.add_argument("--kinds", nargs="+", help="fusion kinds; default: every one that has a recipe")
    parser.add_argument("--max-train-rows", type=int, help="of the logistic regression")
    trials.add_options(parser)
    options = parser.parse_args()
    options.kinds = options.kinds or [
        name.removeprefix(f"{options.dataset}_") for name in recipes() if name.startswith(f"{options.dataset}_")
    ]
    return options


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
        seeds = [cells[f"{kind}/{seed}"] for seed in range(options.seeds)]
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
    text = report.mean_and_deviation(values) + (" (MSE)" if name == "mse" else "")
    share = f", {(statistics.mean(values) - 0.5) / (bayes - 0.5):.1%} of Bayes" if bayes else ""
    return text + share


if __name__ == "__main__":
    main()
