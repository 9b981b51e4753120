"""Has training become slower? Operators of a step, and ratios of speeds, against the last committed results.

    make bench-check                          # measures (a quarter of an hour), compares, ends with 1 where one fell
    python benchmarks/guard.py --update       # measures and writes them into benchmarks/results/

Operators are counted first (`operators.py`): they are the same on every machine, and none may rise. Of speeds only
ratios are compared, never times: the share of a large product's speed that a step of each fusion reaches and end to
end to computation alone, both of which `mtlrec bench` measures in turns, and two ranks to one. A ratio has fallen
when it is more than a tenth below the committed one. A product gains more from a wide processor than a step does, so
figures are kept by processor and number of cores; where there are none of this machine's, nothing is measured and the
status is 2.

A round in which the large product's own speed differs by more than a tenth between the measurements was disturbed by
something else on the machine and is taken again; where more rounds were disturbed than are wanted, nothing is compared
and the status is 2.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import jobs, operators
from benchmarks.report import processor
from benchmarks.train import BATCH, bench

RESULTS = Path(__file__).parent / "results" / "guard.json"
KINDS = ("shared_bottom", "mmoe", "adatt_sp", "adatt", "ple")
ALLOWED = 0.9
QUIET = 0.9
"""The slowest product of a round over its fastest; on a machine with nothing else to do it is 0.95 and more."""


class Round(NamedTuple):
    ratios: dict[str, float]
    products: list[float]
    """TFLOP/s, each beside one measurement on all cores."""

    @property
    def is_quiet(self) -> bool:
        return min(self.products) >= QUIET * max(self.products)


class Disturbed(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".demo/bench_guard"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--update", action="store_true", help="write the results instead of comparing with them")
    options = parser.parse_args()
    check_operators(options.update)
    hardware = f"{processor()}, {os.cpu_count()} cores"
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    if hardware not in figures and not options.update:
        print(
            f"no figures are committed of {hardware}, but of {'; '.join(figures)}: --update adds them", file=sys.stderr
        )
        raise SystemExit(2)
    try:
        rounds = quiet_rounds(lambda: one_round(options), options.rounds)
    except Disturbed as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None
    ratios = {name: round(statistics.median(one.ratios[name] for one in rounds), 4) for name in rounds[0].ratios}
    product = statistics.median(speed for one in rounds for speed in one.products)
    if options.update:
        figures[hardware] = {
            "command": " ".join(["python benchmarks/guard.py", *sys.argv[1:]]),
            "product_tflops": round(product, 4),
            "ratios": ratios,
        }
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        return
    committed = figures[hardware]
    print(
        f"{hardware}: a product ran at {product:.3f} TFLOP/s, at {committed['product_tflops']:.3f} for those committed"
    )
    for line in compared(committed["ratios"], ratios):
        print(line)
    raise SystemExit(1 if fallen(committed["ratios"], ratios) else 0)


def check_operators(update: bool) -> None:
    """Raises SystemExit(1) where a step has more operators than the committed one."""
    now = operators.count_all()
    if update:
        operators.write(now, operators.RESULTS)
        return
    lines = operators.risen(operators.committed(), now)
    print("\n".join(lines) if lines else f"operators of a step: none of {len(now)} jobs has more than before")
    if lines:
        raise SystemExit(1)


def quiet_rounds(take: Callable[[], Round], wanted: int) -> list[Round]:
    """Raises Disturbed when more were disturbed than are wanted."""
    quiet: list[Round] = []
    disturbed = 0
    while len(quiet) < wanted:
        found = take()
        said = f"products at {min(found.products):.3f} to {max(found.products):.3f} TFLOP/s"
        if found.is_quiet:
            quiet.append(found)
            print(f"round {len(quiet)} of {wanted}, {said}", file=sys.stderr, flush=True)
            continue
        disturbed += 1
        print(f"a round was disturbed, {said}", file=sys.stderr, flush=True)
        if disturbed > wanted:
            raise Disturbed("something else keeps this machine busy: nothing was compared; try again when it is quiet")
    return quiet


def one_round(options: argparse.Namespace) -> Round:
    sizes = [100_000] * jobs.TABLES
    root = jobs.write_files(options.root, sizes, 64 * BATCH, BATCH)
    one = {kind: bench(jobs.job(root, sizes, kind), options.steps, "train") for kind in KINDS}
    ple = jobs.job(root, sizes, "ple")
    threads = max(1, (os.cpu_count() or 1) // 2)
    two = bench(ple, options.steps, "memory", "--world-size", "2", threads=threads)
    products = [found["ceilings"]["tflops"] for found in one.values()] + [2 * two["ceilings"]["tflops"]]
    return Round(ratios_of(one, two), products)


def ratios_of(one: dict[str, dict[str, Any]], two: dict[str, Any]) -> dict[str, float]:
    """Args: what one rank reached by kind, and two with PLE."""
    ratios: dict[str, float] = {f"{kind} to a product": one[kind]["mfu"] for kind in KINDS}
    ratios["end to end to computation"] = one["ple"]["samples_per_s"] / one["ple"]["compute_samples_per_s"]
    ratios["two ranks to one"] = two["samples_per_s"] / one["ple"]["compute_samples_per_s"]
    return ratios


def compared(committed: dict[str, float], ratios: dict[str, float]) -> list[str]:
    width, below = max(map(len, committed)), fallen(committed, ratios)
    return [
        f"{name:{width}}  {ratios[name]:.3f}  was {before:.3f}{'   FELL' if name in below else ''}"
        for name, before in committed.items()
    ]


def fallen(committed: dict[str, float], ratios: dict[str, float]) -> list[str]:
    """Raises KeyError where a committed ratio was not measured: what is no longer looked at must be taken out there."""
    return [name for name, before in committed.items() if ratios[name] < ALLOWED * before]


if __name__ == "__main__":
    main()
