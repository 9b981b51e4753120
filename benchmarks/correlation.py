"""Does sharing help tasks that agree and hurt tasks that do not? The experiment of the MMoE and PLE papers.

    python benchmarks/correlation.py --root data/correlation --jobs 2 --output benchmarks/results/correlation.json

For every planted correlation a synthetic feed (`mtlrec synth feed --correlation C --splits 0.4 0.1 0.5`, made below
--root where it is not there), and on it every fusion kind with every seed. A kind's gain on a task is its AUC over all
impressions less that of single_task with the same seed, which shares the embeddings and nothing else; shown are the
mean over the seeds and twice its standard error. `--plot FILE` draws it.
"""

import argparse
import math
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import report
import trials

from mtlrec import layers

BASELINE = "single_task"
TASKS = ["click", "long_view", "like", "share"]


def main() -> None:
    options = parse_arguments()
    settings: dict[str, Any] = {"set": options.set, "bayes_auc": {}}
    for correlation in options.correlations:
        feed = ["--rows", str(options.rows), "--correlation", str(correlation), "--splits", "0.4", "0.1", "0.5"]
        schema = report.synth_feed(options.root / str(correlation), *feed)
        settings["bayes_auc"][str(correlation)] = schema["bayes_auc"]
        settings.setdefault("rows", schema["rows"])
    command = shlex.join(["python", "benchmarks/correlation.py", *sys.argv[1:]])
    candidates = [
        trials.candidate(
            f"{correlation}/{kind}", f"feed/{kind}", [f"data.root={options.root / str(correlation)}", *options.set]
        )
        for correlation in options.correlations
        for kind in options.kinds
    ]
    cells = trials.test_metrics(candidates, options)
    results = {"command": command, "hardware": trials.hardware(options), "settings": settings, "cells": cells}
    report.write(results, options.output)
    for correlation in options.correlations:
        print("\n".join(table(results, options, correlation)), "\n")
    if options.plot:
        plot(results, options)


def parse_arguments() -> argparse.Namespace:
    kinds = list(layers.FUSIONS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a feed per correlation goes below it")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--correlations", type=float, nargs="+", default=[-0.5, 0.0, 0.5, 1.0])
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    trials.add_options(parser)
    parser.add_argument("--plot", type=Path, help="a picture of the gains")
    options = parser.parse_args()
    options.kinds = list(dict.fromkeys([BASELINE, *options.kinds]))
    return options


def gains(
    results: dict[str, Any], options: argparse.Namespace, correlation: float, kind: str, task: str
) -> list[float]:
    """In thousandths of AUC, a seed each."""

    def auc(kind: str, seed: int) -> float:
        cell = results["cells"][f"{correlation}/{kind}/{seed}"][task]
        return float(cell.get("entire_auc", cell["auc"]))

    return [1000 * (auc(kind, seed) - auc(BASELINE, seed)) for seed in range(options.seeds)]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), 2 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def table(results: dict[str, Any], options: argparse.Namespace, correlation: float) -> list[str]:
    lines = [f"| correlation {correlation:g} | " + " | ".join(TASKS) + " |", "|---|" + "--:|" * len(TASKS)]
    bayes = results["settings"]["bayes_auc"][str(correlation)]
    cells = [results["cells"][f"{correlation}/{BASELINE}/{seed}"] for seed in range(options.seeds)]
    base = [statistics.mean(cell[task].get("entire_auc", cell[task]["auc"]) for cell in cells) for task in TASKS]
    lines.append(
        f"| {BASELINE}, AUC (true probabilities) | "
        + " | ".join(f"{auc:.4f} ({bayes[task]:.4f})" for auc, task in zip(base, TASKS, strict=True))
        + " |"
    )
    for kind in (kind for kind in options.kinds if kind != BASELINE):
        pairs = [mean_and_error(gains(results, options, correlation, kind, task)) for task in TASKS]
        lines.append(f"| {kind} | " + " | ".join(f"{mean:+.1f} ± {error:.1f}" for mean, error in pairs) + " |")
    return lines


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(TASKS), figsize=(15, 4.2), sharey=True, layout="constrained")
    kinds = [kind for kind in options.kinds if kind != BASELINE]
    for panel, task in zip(panels, TASKS, strict=True):
        panel.axhline(0, color="black", linewidth=1)
        for index, kind in enumerate(kinds):
            pairs = [mean_and_error(gains(results, options, c, kind, task)) for c in options.correlations]
            means, errors = zip(*pairs, strict=True)
            shifted = [c + 0.02 * (index - len(kinds) / 2) for c in options.correlations]
            panel.errorbar(shifted, means, errors, marker="o", markersize=4, capsize=2, linewidth=1.2, label=kind)
        panel.set_title(task)
        panel.set_xticks(options.correlations)
        panel.set_xlabel("planted correlation with the parent")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"AUC gain over {BASELINE}, thousandths")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds))
    figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
