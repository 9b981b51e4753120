"""Has training become slower? Ratios of speeds on this machine against those of the last committed results.

    make bench-check                          # measures (five minutes), compares, ends with 1 where one fell
    python benchmarks/guard.py --update       # measures and writes benchmarks/results/guard.json

Only ratios of figures measured side by side are compared, never times: each fusion's samples per second to
shared_bottom's, end to end to computation alone, two ranks to one, and the share of a large product's speed that PLE's
step reaches. A ratio has fallen when it is more than a tenth below the committed one.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import jobs
from benchmarks.train import BATCH, bench
from benchmarks.trials import processor

RESULTS = Path(__file__).parent / "results" / "guard.json"
BASELINE = "shared_bottom"
KINDS = (BASELINE, "mmoe", "ple", "adatt_sp", "adatt")
ALLOWED = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".demo/bench_guard"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--update", action="store_true", help="write the results instead of comparing with them")
    options = parser.parse_args()
    ratios = measured(options)
    if options.update:
        said = {"command": "python benchmarks/guard.py --update", "hardware": f"{processor()}, {os.cpu_count()} cores"}
        RESULTS.write_text(json.dumps(said | {"ratios": ratios}, indent=1) + "\n", encoding="utf-8")
        return
    committed = json.loads(RESULTS.read_text(encoding="utf-8"))["ratios"]
    for line in compared(committed, ratios):
        print(line)
    raise SystemExit(1 if fallen(committed, ratios) else 0)


def measured(options: argparse.Namespace) -> dict[str, float]:
    sizes = [100_000] * jobs.TABLES
    root = jobs.write_files(options.root, sizes, 64 * BATCH, BATCH)
    of_round: list[dict[str, float]] = []
    for round_ in range(options.rounds):
        by_kind = {kind: bench(jobs.job(root, sizes, kind), options.steps, "memory") for kind in KINDS}
        ple = jobs.job(root, sizes, "ple")
        from_files = bench(ple, options.steps, "train")["samples_per_s"]
        threads = max(1, (os.cpu_count() or 1) // 2)
        two = bench(ple, options.steps, "memory", "--world-size", "2", threads=threads)["samples_per_s"]
        rates = {kind: one["samples_per_s"] for kind, one in by_kind.items()}
        ratios = {f"{kind} to {BASELINE}": rates[kind] / rates[BASELINE] for kind in KINDS[1:]}
        ratios |= {"end to end to computation": from_files / rates["ple"], "two ranks to one": two / rates["ple"]}
        of_round.append(ratios | {"share of a product's speed": by_kind["ple"]["mfu"]})
        print(f"round {round_ + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return {name: round(statistics.median(one[name] for one in of_round), 4) for name in of_round[0]}


def compared(committed: dict[str, float], ratios: dict[str, float]) -> list[str]:
    width = max(map(len, committed))
    return [
        f"{name:{width}}  {ratios[name]:.3f}  was {before:.3f}{'   FELL' if name in fallen(committed, ratios) else ''}"
        for name, before in committed.items()
    ]


def fallen(committed: dict[str, float], ratios: dict[str, float]) -> list[str]:
    """Raises KeyError where a committed ratio was not measured: what is no longer looked at must be taken out there."""
    return [name for name, before in committed.items() if ratios[name] < ALLOWED * before]


if __name__ == "__main__":
    main()
