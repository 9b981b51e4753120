"""Many small trainings, each in a process and on a thread of its own; what is finished is kept and not run again."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

Metrics = dict[str, dict[str, Any]]


class Trial(NamedTuple):
    """A recipe and what is overridden in it."""

    recipe: str
    overrides: tuple[str, ...]


def run_missing(results: dict[str, Any], trials: dict[str, Trial], jobs: int, out: Path) -> None:
    """Adds each trial's test metrics to `results["cells"]` under its key, writing `out` after every one."""
    missing = {key: trial for key, trial in trials.items() if key not in results["cells"]}
    with ThreadPoolExecutor(jobs) as pool:
        for key, metrics in zip(missing, pool.map(train, missing.values()), strict=True):
            results["cells"][key] = metrics
            write(results, out)
            print(f"{key}: done", file=sys.stderr, flush=True)


def train(trial: Trial) -> Metrics:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mtlrec", "train", trial.recipe, "--json", "-o", folder]
        command += [word for override in trial.overrides for word in ("--set", override)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    metrics: Metrics = json.loads(done.stdout)["test"]
    return metrics


def read(out: Path, settings: dict[str, Any], **first: Any) -> dict[str, Any]:
    """What `out` holds already, or a new table; results of other settings are not mixed with these."""
    if out.exists():
        results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            raise SystemExit(f"{out}: holds {results['settings']}, not {settings}; name another --out")
        return results
    hardware = f"{processor()}, {os.cpu_count()} cores, one thread per job"
    return {"hardware": hardware, "settings": settings, **first, "cells": {}}


def write(results: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def synth_feed(root: Path, *options: str) -> dict[str, Any]:
    """Writes the synthetic feed to `root` where it is not there yet; its schema.json."""
    schema = root / "schema.json"
    if not schema.exists():
        command = [sys.executable, "-m", "mtlrec", "synth", "feed", "--out", str(root), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    described: dict[str, Any] = json.loads(schema.read_text(encoding="utf-8"))
    return described


def mean_and_deviation(values: list[float], digits: int = 4) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"
