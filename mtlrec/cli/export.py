"""`mtlrec export`, and what `evaluate` and `predict` do with what it made."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mtlrec.cli.data import check_split, print_, wide_console
from mtlrec.config import LossConfig
from mtlrec.config.file import job_of
from mtlrec.errors import ConfigError

if TYPE_CHECKING:
    from mtlrec.metrics.task_metrics import Metrics
    from mtlrec.serving.lookup import Precision
    from mtlrec.serving.parity import Parity


class Quantize(StrEnum):
    int8 = "int8"
    fp16 = "fp16"
    none = "none"


PRECISIONS: dict[Quantize, Precision] = {Quantize.int8: "int8", Quantize.fp16: "fp16", Quantize.none: "fp32"}


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run: what `train --output` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The artifact's folder.")],
    quantize: Annotated[Quantize, typer.Option(help="What the tables are kept as; the rest stays float32.")] = (
        Quantize.none
    ),
    device: Annotated[Device, typer.Option(help="Where it will run; it is compiled there too.")] = Device.cpu,
    split: Annotated[str, typer.Option(help="Whose rows are compared: train, valid or test.")] = "valid",
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far compiled and eager may differ in any row's prediction.")
    ] = 1e-6,
    max_auc_change: Annotated[
        float, typer.Option(min=0, help="How far quantized tables may move a task's AUC.")
    ] = 5e-4,
    checkpoint_: Annotated[
        str, typer.Option("--checkpoint", help="last, best (see train.keep_best) or the number of a step.")
    ] = "last",
    overwrite: Annotated[bool, typer.Option(help="Replace the artifact in --out.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
) -> None:
    """Make a run's checkpoint one folder to serve: tables gathered and quantized, the model compiled ahead of time, and
    held against the checkpoint on a split. It runs without mtlrec and TorchRec; `predict --artifact` and `evaluate
    --artifact` take it, and mtlrec.serving.Predictor in a server."""
    import torch

    from mtlrec.distributed.process_group import process_group
    from mtlrec.errors import ArtifactError, ParityError
    from mtlrec.serving.export import export as export_run

    check_split(split)
    if device is Device.cuda and not torch.cuda.is_available():
        raise ArtifactError("--device cuda: torch sees no CUDA device here; export on a machine that has the GPU")
    job = job_of(run, set_ or [])
    try:
        with process_group(device.value, job.train.timeout_s) as ranks:
            found = export_run(
                run, job, out, ranks, PRECISIONS[quantize], checkpoint_, split, tolerance, max_auc_change, overwrite
            )
    except ParityError as error:
        _show(error.parity, as_json)
        raise
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    _show(found, as_json, output=str(out), bytes=size)
    if not as_json:
        print(f"{out}: {size / 1e6:,.1f} MB, tables in {PRECISIONS[quantize]}")


def evaluate_artifact(artifact: Path, split: str, overrides: list[str]) -> Metrics:
    """The split's metrics, of the compiled program.

    Raises ConfigError for an override of what the program was compiled with.
    """
    from mtlrec.distributed.process_group import process_group
    from mtlrec.evaluation.evaluate import evaluate
    from mtlrec.models.build import build_train_module
    from mtlrec.serving.predictor import Predictor
    from mtlrec.serving.program import ServedModule
    from mtlrec.training.loading import loader_of

    predictor = Predictor(artifact)
    job = predictor.manifest.job_config(artifact, overrides)
    for section in ("features", "tables", "tasks", "model"):
        if getattr(job, section) != getattr(predictor.job, section):
            raise ConfigError(f"--set {section}...: an artifact's {section} cannot be changed; export the run anew")
    with process_group(predictor.manifest.device, job.train.timeout_s) as ranks:
        loader = loader_of(job, split, ranks, expected_fingerprints=predictor.manifest.id_fingerprints)
        unbalanced = job.model_copy(update={"loss": LossConfig()})  # whose method need not be installed here
        model = ServedModule(predictor.function, build_train_module(unbalanced).loss.multitask.to(ranks.device))
        metrics = evaluate(model, loader, job, ranks, "evaluate")
        return metrics.compute(predictor.manifest.calibration)


def predict_with_artifact(artifact: Path, source: str, output: Path, as_json: bool) -> None:
    from mtlrec.serving.files import score_files
    from mtlrec.serving.predictor import Predictor

    predictor = Predictor(artifact)
    rows, errors = score_files(predictor, source, output)
    calibration, score = predictor.manifest.calibration, predictor.manifest.fused_score
    by = f", calibrated ({calibration.method})" if calibration else ""
    by += f"; fused_score is {score}" if score else ""
    by += f"; {errors:,} have an error" if errors else ""
    described = {
        "rows": rows,
        "errors": errors,
        "output": str(output),
        "calibration": calibration and calibration.method,
        "fused_score": score and score.exponents,
    }
    print_(described, as_json, f"{rows:,} rows scored into {output} by {artifact}{by}")


def check_run_or_artifact(run: Path | None, artifact: Path | None, **only_with_run: object) -> None:
    """Raises ConfigError unless one of the two is given; with an artifact, for what wants a run, or several ranks."""
    if (run is None) == (artifact is None):
        raise ConfigError("name a run's folder, or --artifact and what `mtlrec export` made: one of them")
    if artifact is not None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError("--artifact: is scored in one process; start it without torchrun")
        for option, value in only_with_run.items():
            if value:
                raise ConfigError(
                    f"--{option.replace('_', '-')}: is for a run; an artifact is what it was when it was exported"
                )


def _show(found: Parity, as_json: bool, **more: Any) -> None:
    if as_json:
        print_(found.model_dump(mode="json") | more, True, "")
    else:
        wide_console().print(_parity_table(found))


def _parity_table(found: Parity) -> Table:
    table = Table("task", "metric", title=f"parity, {found.split}, {found.rows:,} rows")
    for name in ("checkpoint", "artifact", "change", "compiled to eager, at most"):
        table.add_column(name, justify="right")
    for task, metrics in found.metrics.items():
        for index, (metric, (before, after)) in enumerate(metrics.items()):
            apart = f"{found.differences[task]:.1e}" if index == 0 else ""
            if before is None or after is None:
                table.add_row(task if index == 0 else "", metric, "-", "-", "-", apart)
            else:
                row = (f"{before:.6f}", f"{after:.6f}", f"{after - before:+.1e}", apart)
                table.add_row(task if index == 0 else "", metric, *row)
    return table
