"""Plant faults in mtlrec, one at a time, and see whether the tests catch them.

`faults.yaml` beside this file lists the faults. Each is applied to a copy of the tree, and its tests run there. A fault
that no test notices is missed: the suite needs a test for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

FAULTS = Path(__file__).with_name("faults.yaml")
ROOT = Path(__file__).parents[2]
PYTEST = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
EXAMPLE = """example:
  python tests/mutants/run.py "ESMM forgets the parent's log-probability" --output faults.json
"""
MOST_SHOWN = 2000
"""Characters of pytest's output that are shown where a run says nothing about the fault."""


@dataclass(frozen=True)
class Fault:
    """One line of one file, replaced: `before` occurs once in `file`. `tests` are pytest's, cheapest first."""

    name: str
    file: str
    before: str
    after: str
    tests: list[str]


@dataclass(frozen=True)
class Outcome:
    """`result` is caught, timeout, missed, or broken where the tests could not run. `by` is the test that failed."""

    name: str
    file: str
    result: str
    by: str
    seconds: float


def main() -> int:
    arguments = parse_arguments()
    tree = arguments.tree.resolve()
    faults = select(read_faults(FAULTS), arguments.names)
    problems = [problem for fault in faults for problem in problems_of(fault, tree)]
    if problems or arguments.check:
        say("\n".join(problems) or "every fault can be planted")
        return 2 if problems else 0
    if not arguments.skip_clean:
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        say(f"the tree as it is: {len(tests)} tests or files of tests")
        result, by, seconds, output = run_tests(tree, tests, None, arguments.timeout * len(faults))
        if result != "missed":
            say(output[-MOST_SHOWN:])
            raise SystemExit(f"the tree as it is fails ({result}, {by}). Mend it first: a failure must be the fault's.")
        say(f"the tree as it is passes in {seconds:.0f} s")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(lambda fault: try_fault(fault, tree, arguments.timeout), faults))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(table(outcomes), encoding="utf-8")
    else:
        print(table(outcomes), end="")
    return int(any(one.result in ("missed", "broken") for one in outcomes))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Plant faults in mtlrec, one at a time, and see whether the tests catch them. "
        "Exit with status 1 if any is missed, 2 if one cannot be planted.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try, by name; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at the same time (default: 2)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to try them on (default: this one)")
    parser.add_argument(
        "--output", type=Path, help="write the outcomes to this JSON file, and a table beside it as .md"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds; a fault that takes longer is caught")
    parser.add_argument("--check", action="store_true", help="only check that every fault can be planted")
    parser.add_argument("--skip-clean", action="store_true", help="do not first run the tests on the tree as it is")
    return parser.parse_args()


def read_faults(path: Path) -> list[Fault]:
    faults = [Fault(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    if len({fault.name for fault in faults}) < len(faults):
        raise SystemExit(f"{path}: two faults have the same name. Rename one.")
    return faults


def select(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    unknown = set(names) - {fault.name for fault in faults}
    if unknown:
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}. Names are in {FAULTS}.")
    return [fault for fault in faults if not names or fault.name in names]


def problems_of(fault: Fault, tree: Path) -> list[str]:
    """Why the fault cannot be planted or its tests cannot be found; empty if all is well."""
    path = tree / fault.file
    count = path.read_text(encoding="utf-8").count(fault.before) if path.is_file() else 0
    what = f"`before` occurs {count} times in {fault.file}, not once" if path.is_file() else f"no file {fault.file}"
    absent = [test for test in fault.tests if not (tree / test.partition("::")[0]).exists()]
    found = [] if count == 1 else [f"{fault.name}: {what}"]
    return found + [f"{fault.name}: no test {test}" for test in absent]


def try_fault(fault: Fault, tree: Path, timeout: float) -> Outcome:
    result, by, seconds, output = run_tests(tree, fault.tests, fault, timeout)
    say(f"{result:7} {seconds:4.0f} s  {fault.name}" + (f"  ({by})" if by else ""))
    if result == "broken":
        say(output[-MOST_SHOWN:])
    return Outcome(fault.name, fault.file, result, by, round(seconds, 1))


def run_tests(tree: Path, tests: Sequence[str], fault: Fault | None, timeout: float) -> tuple[str, str, float, str]:
    """Run pytest in a copy of the tree: result, the test that failed first, seconds, output."""
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        copy = Path(folder) / "tree"
        copy_tracked_files(tree, copy)
        if fault is not None:
            text = (copy / fault.file).read_text(encoding="utf-8")
            (copy / fault.file).write_text(text.replace(fault.before, fault.after), encoding="utf-8")
        command = [sys.executable, *PYTEST, f"--basetemp={folder}/pytest", *tests]
        environment = {"MTLREC_SHARED": str(tree.parent / "shared"), **os.environ, "PYTHONPATH": str(copy)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = time.monotonic()
        # A session of its own: a timeout must end the ranks that the tests have started, too.
        with subprocess.Popen(command, cwd=copy, env=environment, start_new_session=True, **pipes) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                return "timeout", "", time.monotonic() - started, output
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    result = {0: "missed", 1: "caught"}.get(process.returncode, "broken")
    return result, failed[1] if failed else "", time.monotonic() - started, output


def copy_tracked_files(tree: Path, copy: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=tree, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (tree / name).exists():  # a file that was removed and not yet committed is still listed
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, copy / name, follow_symlinks=False)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each fault, and how many were caught."""
    caught = sum(one.result in ("caught", "timeout") for one in outcomes)
    rows = [f"| {one.name} | {one.file} | {one.result} | {one.by} | {one.seconds:.0f} |" for one in outcomes]
    head = [f"{caught} of {len(outcomes)} faults are caught.", "", "| fault | file | result | by | s |"]
    return "\n".join([*head, "|---|---|---|---|---:|", *rows]) + "\n"


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
