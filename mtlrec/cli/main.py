"""The `mtlrec` command: its verbs, and what ends them.

Exit status 2 for a user's mistake (one line on stderr, no traceback), 1 for a failure. With `--json` stdout holds one
JSON object and nothing else. Heavy imports wait until a verb needs them, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any

import typer

from mtlrec.cli import bench, compare, data, diagnose, evaluate, export, jobs, predict, train
from mtlrec.compat.memory_errors import is_out_of_memory
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.errors import JobFailed, UserError

app = typer.Typer(
    help="Multi-task recommender training on TorchRec.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data.prepare_app, name="prepare")
app.add_typer(data.synth_app, name="synth")
for verb, example in (
    (train.train, "mtlrec train census --output runs/census --set data.root=data/census-income"),
    (
        evaluate.evaluate,
        "mtlrec evaluate runs/census --split test --calibrate isotonic, or mtlrec evaluate runs/kuairand "
        "--rank-metric ndcg@10 --relevance click,like=2 --set metrics.group_by=raw_user_id",
    ),
    (predict.predict, "mtlrec predict runs/census --input data/census-income/test --output scores.parquet"),
    (
        compare.compare,
        "mtlrec compare kuairand -o compared --fusion single_task,mmoe,ple --seeds 10 --tuning-seeds 3",
    ),
    (diagnose.diagnose, "mtlrec diagnose runs/kuairand --split valid --slice hour"),
    (export.export, "mtlrec export runs/census --output artifact --quantize int8"),
    (bench.bench, "mtlrec bench feed --source random --world-size 2"),
    (jobs.plan, "mtlrec plan criteo --nodes 8 --gpus-per-node 8 --hbm-gb 80"),
    (data.inspect, "mtlrec inspect 'logs/2026-*/*.parquet' --config job.yaml"),
    (jobs.recipes, "mtlrec recipes census > job.yaml"),
    (jobs.schema, "mtlrec schema > mtlrec.schema.json"),
):
    app.command(epilog=f"Example: {example}")(verb)


def _version(wanted: bool) -> None:
    if wanted:
        versions = ((name, metadata.version(name)) for name in ("mtlrec", "torch", "torchrec"))
        print(", ".join(" ".join(pair) for pair in versions))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script."""
    raise SystemExit(run_command(app))


def run_command(command: Callable[[], Any]) -> int:
    """Run a command and return its exit status: 2 for a UserError, 1 for every failure, with a traceback for a bug."""
    quiet_libraries()
    try:
        with _log_on_stderr():
            command()
    except SystemExit as exit_:
        return int(exit_.code or 0) if not isinstance(exit_.code, str) else 1
    except UserError as error:
        _print_error(str(error))
        return 2
    except JobFailed as error:
        _print_error(str(error))
        return 1
    except OSError as error:  # a full disk or a folder without permission is no bug
        if error.errno is None:
            return _report_bug(error)
        _print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
        return 1
    except Exception as error:
        if is_out_of_memory(error):
            _print_error("out of memory. Lower data.batch_size, or shard the tables over more ranks (`mtlrec plan`).")
            return 1
        return _report_bug(error)
    return 0


def _report_bug(error: Exception) -> int:
    traceback.print_exception(error)
    _print_error(
        f"{type(error).__name__}: this is a bug in mtlrec or in a library it uses, not in your job. "
        "Please open an issue in the repository of mtlrec, with the lines above, the job and `mtlrec --version`."
    )
    return 1


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Print what mtlrec logs as plain lines, to whatever stderr is when a line is logged."""
    log, handler = logging.getLogger("mtlrec"), _StderrHandler()
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


def _print_error(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    prefix = "mtlrec" if rank == "0" else f"mtlrec (rank {rank})"
    print("\n".join(f"{prefix}: {line}" for line in message.splitlines()), file=sys.stderr, flush=True)
