"""What the benchmarks share: the machine's name, numbers as text, results as JSON, the synthetic feed."""

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def write(results: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def mean_and_deviation(values: list[float], digits: int = 4) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def synth_feed(root: Path, *options: str) -> dict[str, Any]:
    """Write the synthetic feed to `root` if it is not there yet; returns its schema.json."""
    schema = root / "schema.json"
    if not schema.exists():
        command = [sys.executable, "-m", "mtlrec", "synth", "feed", "--output", str(root), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    described: dict[str, Any] = json.loads(schema.read_text(encoding="utf-8"))
    return described
