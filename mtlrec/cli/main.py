"""The `mtlrec` command: a verb each. Parses, calls, prints; the work is elsewhere.

Exit status 2 for a user's mistake (one line on stderr, no traceback), 1 for a failure. With `--json` stdout holds one
JSON object and nothing else. Heavy imports wait until a verb needs them, so that `--help` is quick.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from mtlrec.cli import bench as cli_bench
from mtlrec.cli import compare as cli_analysis
from mtlrec.cli import data as cli_data
from mtlrec.cli import diagnose as cli_diagnose
from mtlrec.cli import export as cli_serve
from mtlrec.cli import score as cli_score
from mtlrec.cli.score import Json, Set
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config import JobConfig
from mtlrec.config.file import load_config, recipe_text
from mtlrec.config.file import recipes as recipe_names
from mtlrec.errors import JobFailed, UserError
from mtlrec.run_folder import RunFolder

logger = logging.getLogger(__name__)

app = typer.Typer(
    help="Multi-task recommender training on TorchRec.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(cli_data.prepare_app, name="prepare")
app.add_typer(cli_data.synth_app, name="synth")
app.command("bench", epilog="Example: mtlrec bench feed_ple --source random --world-size 2")(cli_bench.bench)
app.command(
    "compare",
    epilog="Example: mtlrec compare kuairand_ple -o compared --fusion single_task,mmoe,ple --seeds 10 --tuning-seeds 3",
)(cli_analysis.compare)
app.command("diagnose", epilog="Example: mtlrec diagnose runs/kuairand --split valid --slice hour")(
    cli_diagnose.diagnose
)
app.command(
    "evaluate",
    epilog="Example: mtlrec evaluate runs/census --split test --calibrate isotonic, or mtlrec evaluate runs/kuairand "
    "--rank-metric ndcg@10 --relevance click,like=2 --set metrics.group_by=raw_user_id",
)(cli_score.evaluate)
app.command(
    "predict", epilog="Example: mtlrec predict runs/census --input data/census-income/test --output scores.parquet"
)(cli_score.predict)
app.command("export", epilog="Example: mtlrec export runs/census --out artifact --quantize int8")(cli_serve.export)
app.command("inspect", epilog="Example: mtlrec inspect 'logs/2026-*/*.parquet' --config job.yaml")(cli_data.inspect)

Config = Annotated[str, typer.Argument(help="A YAML job, or the name of a recipe (see `mtlrec recipes`).")]


class DeviceKind(StrEnum):
    cuda = "cuda"
    cpu = "cpu"


def _version(wanted: bool) -> None:
    if wanted:
        versions = ((name, metadata.version(name)) for name in ("mtlrec", "torch", "torchrec"))
        print(", ".join(" ".join(pair) for pair in versions))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass


@app.command(epilog="Example: mtlrec train census_adatt_sp --output runs/census --set data.root=data/census-income")
def train(
    config: Config,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder.")],
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option(help="Continue the run in --output from its last checkpoint, if it has one.")
    ] = False,
    init_from: Annotated[Path | None, typer.Option(help="Start from the weights of another run.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Remove what is in --output first.")] = False,
    as_json: Json = False,
) -> None:
    """Train a job and report the metrics of its valid and test splits."""
    from mtlrec.checkpoints.warm_start import warm_start
    from mtlrec.diagnosis.callback import PeriodicDiagnosis
    from mtlrec.distributed.process_group import on_first_rank, process_group, restarts
    from mtlrec.errors import Preempted
    from mtlrec.evaluation.callback import Evaluation
    from mtlrec.training.loading import loader_of
    from mtlrec.training.saving import Saving
    from mtlrec.training.telemetry import Telemetry
    from mtlrec.training.trainer import Callback, Trainer

    job = load_config(config, set_ or [])
    with process_group(job.train.device, job.train.timeout_s) as ranks, ExitStack() as stack:
        folder, restarted = RunFolder(output), restarts(ranks) > 0
        resume = on_first_rank(ranks, lambda: folder.prepare(resume, restarted, overwrite, init_from))
        loader = loader_of(job, "train", ranks, training=True)
        telemetry, saving = Telemetry(output, ranks), Saving(job, output, ranks)
        evaluation = Evaluation(job, ranks, loader, telemetry)
        callbacks: list[Callback] = [telemetry, saving, evaluation]
        if "valid" in evaluation.loaders:
            callbacks.append(PeriodicDiagnosis(evaluation.loaders["valid"], telemetry))
        trainer = stack.enter_context(closing(Trainer(job, ranks, loader, callbacks)))
        changed = saving.resume(trainer) if resume else []
        if trainer.step:
            epoch = min(trainer.position.epoch + 1, job.train.epochs)
            message = f"resumed after step {trainer.step} (epoch {epoch} of {job.train.epochs})"
            message += "".join(f"\n  changed since: {change}" for change in changed)
        elif init_from is not None:
            message = f"started from {init_from}: {warm_start(trainer.model.module, job, init_from, ranks)}"
        else:
            message = f"{output}: no checkpoint yet, starting from the beginning" if resume else ""
        if ranks.is_first and message:
            logger.info(message)
        if overwrite and not resume:
            on_first_rank(ranks, folder.clear)
        saving.write_description(trainer)
        on_first_rank(ranks, folder.mark)
        try:
            trainer.fit()
        except Preempted as stopped:
            if ranks.is_first:
                logger.info(str(stopped))
            return
        except KeyboardInterrupt:
            logger.info(f"interrupted after step {trainer.step}; --resume goes on from the last checkpoint")
            raise
        if ranks.is_first:
            cli_score.report(evaluation.final, as_json)


@app.command(epilog="Example: mtlrec plan criteo_mmoe --nodes 8 --gpus-per-node 8 --hbm-gb 80")
def plan(
    config: Config,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks on each node; with --device cpu too.")] = 8,
    hbm_gb: Annotated[float, typer.Option(min=0.001, help="Memory of each GPU.")] = 80.0,
    ddr_gb: Annotated[float, typer.Option(min=0.001, help="Host memory for each rank.")] = 128.0,
    device: Annotated[DeviceKind, typer.Option()] = DeviceKind.cuda,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan to this file, for sharding.plan.")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """How the tables would lie on machines that need not be there: memory, step time by phase, balance, what does not
    fit. Needs neither GPUs nor data."""
    import torch

    from mtlrec.distributed.estimate import estimate
    from mtlrec.training.sharded import unsharded

    job = load_config(config, set_ or [])
    module = unsharded(job, torch.device(device.value))
    found = estimate(module, job, nodes, gpus_per_node, device.value, hbm_gb, ddr_gb)
    if output is not None:
        output.write_text(found.plan.text(), encoding="utf-8")
    if as_json:
        more = {"slowest_rank": found.slowest.rank, "imbalance": found.imbalance, "plan": found.plan.dump()}
        print(json.dumps(asdict(found) | more))
        return
    console = cli_data.wide_console()
    for part in found.report():
        console.print(part)


@app.command(epilog="Example: mtlrec recipes census_adatt_sp > job.yaml")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None, as_json: Json = False
) -> None:
    """List the jobs that ship with the package, or print one."""
    if name is not None:
        text = recipe_text(name)
        cli_data.print_(yaml.safe_load(text), as_json, text.rstrip())
    else:
        cli_data.print_(recipe_names(), as_json, "\n".join(recipe_names()))


@app.command(epilog="Example: mtlrec schema > mtlrec.schema.json")
def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    print(json.dumps(JobConfig.model_json_schema(), indent=2))


# ---- the parts


def main() -> None:
    """The console script."""
    raise SystemExit(run_command(app))


def run_command(command: Callable[[], Any]) -> int:
    """Run a command and return its exit status: 2 for a UserError, 1 for every failure, with a traceback for a bug."""
    quiet_libraries()
    _log_to_stderr()
    try:
        command()
    except SystemExit as exit_:
        return int(exit_.code or 0) if not isinstance(exit_.code, str) else 1
    except UserError as error:
        _print_error(str(error))
        return 2
    except JobFailed as error:
        _print_error(str(error))
        return 1
    except OSError as error:
        if error.filename is None:
            return _report_bug(error)
        _print_error(f"{error.filename}: {error.strerror}")  # a full disk or a folder without permission is no bug
        return 1
    except Exception as error:
        return _report_bug(error)
    return 0


def _report_bug(error: Exception) -> int:
    traceback.print_exception(error)
    _print_error(
        f"{type(error).__name__}: this is a bug in mtlrec or in a library it uses, not in your job. "
        "Please open an issue at mtlrec with the lines above, the job and `mtlrec --version`."
    )
    return 1


def _log_to_stderr() -> None:
    """Print what mtlrec logs as plain lines, to whatever stderr is when a line is logged."""
    log = logging.getLogger("mtlrec")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
        log.addHandler(_StderrHandler())


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


def _print_error(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    prefix = "mtlrec" if rank == "0" else f"mtlrec (rank {rank})"
    print("\n".join(f"{prefix}: {line}" for line in message.splitlines()), file=sys.stderr, flush=True)
