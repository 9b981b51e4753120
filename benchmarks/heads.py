"""Which funnel head, where a child is rare? Every head on a synthetic feed whose true probabilities are known.

    python benchmarks/heads.py --root data/feed_rare --jobs 2 --output benchmarks/results/heads.json

The feed (`mtlrec synth feed --rate share=0.005 --splits 0.4 0.1 0.5`, made where --root has none) is the same for all;
half of its rows are tested on, so that a rare task has enough of them. Seeds differ in the weights' start and the order
of rows. Of p(task) over all impressions of the test split: AUC, as a share of what the
true probabilities reach; normalized entropy; calibration (predicted over observed positives); and the calibration
error in percent of the mean of the labels.
"""

import argparse
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import report
import trials

HEADS = {
    "independent, conditional": "{kind: independent, tower_hidden: [32]}",
    "independent, entire space": "{kind: independent, tower_hidden: [32], entire_space: true}",
    "esmm": "{kind: esmm, tower_hidden: [32]}",
    "aitm": "{kind: aitm, tower_hidden: [32]}",
    "dbmtl": "{kind: dbmtl, tower_hidden: [32], relation_hidden: [16]}",
    "escm2_ips": "{kind: escm2_ips, tower_hidden: [32]}",
    "escm2_dr": "{kind: escm2_dr, tower_hidden: [32]}",
}


def main() -> None:
    options = parse_arguments()
    feed = ["--rows", str(options.rows), "--rate", f"share={options.rate}", "--splits", "0.4", "0.1", "0.5"]
    schema = report.synth_feed(options.root, *feed)
    command = shlex.join(["python", "benchmarks/heads.py", *sys.argv[1:]])
    settings = {"source": schema["source"], "rows": schema["rows"], "recipe": options.recipe, "set": options.set}
    binary = {task: label["positives"]["test"] for task, label in schema["labels"].items() if "positives" in label}
    rates = {task: positives / schema["rows"]["test"] for task, positives in binary.items()}
    overrides = [f"data.root={options.root}", *options.set]
    candidates = [
        trials.candidate(name, options.recipe, [*overrides, f"model.heads={head}"]) for name, head in HEADS.items()
    ]
    results = {
        "command": command,
        "hardware": trials.hardware(options),
        "settings": settings,
        "bayes_auc": schema["bayes_auc"],
        "rates": rates,
        "cells": trials.test_metrics(candidates, options),
    }
    report.write(results, options.output)
    for task in options.tasks:
        print("\n".join(table(results, task, options.seeds)), "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the feed's folder; made if it is not there")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=0.005, help="of share, over impressions")
    parser.add_argument("--recipe", default="feed/shared_bottom")
    parser.add_argument("--tasks", nargs="+", default=["share", "like", "long_view", "click"])
    trials.add_options(parser)
    return parser.parse_args()


def table(results: dict[str, Any], task: str, seeds: int) -> list[str]:
    bayes, rate = results["bayes_auc"][task], results["rates"][task]
    lines = [
        f"{task}: {rate:.2%} of impressions, AUC of the true probabilities {bayes:.4f}",
        "",
        "| head | AUC | of achievable | NE | calibration | calibration error |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in HEADS:
        cells = [results["cells"][f"{name}/{seed}"][task] for seed in range(seeds)]

        def values(metric: str, cells: list[dict[str, float]] = cells) -> list[float]:
            return [cell.get(f"entire_{metric}", cell.get(metric, 0.0)) for cell in cells]

        reached = (statistics.mean(values("auc")) - 0.5) / (bayes - 0.5)
        error = [100 * value / rate for value in values("ece")]
        lines.append(
            f"| {name} | {report.mean_and_deviation(values('auc'))} | {reached:.1%} "
            f"| {report.mean_and_deviation(values('ne'))} | {report.mean_and_deviation(values('calibration'), 3)} "
            f"| {report.mean_and_deviation(error, 1)} % |"
        )
    return lines


if __name__ == "__main__":
    main()
