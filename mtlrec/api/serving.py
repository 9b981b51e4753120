"""`mtlrec.export`, and how an exported artifact is evaluated and scores rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from mtlrec.api.jobs import Overrides, check_split, settings_of
from mtlrec.api.quiet import quiet
from mtlrec.api.results import EvaluateResult, ExportResult, PredictResult
from mtlrec.config import JobConfig, LossConfig
from mtlrec.config.file import job_of
from mtlrec.errors import ArtifactError, ConfigError

SECTIONS_OF_PROGRAM = ("features", "tables", "tasks", "model")
"""What an artifact was compiled with."""


@quiet
def export(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    quantize: Literal["int8", "fp16", "none"] = "none",
    device: Literal["cpu", "cuda"] = "cpu",
    split: str = "valid",
    tolerance: float = 1e-6,
    max_auc_change: float = 5e-4,
    checkpoint: str = "last",
    overwrite: bool = False,
    overrides: Overrides = (),
    progress: bool = False,
) -> ExportResult:
    """Make a run's checkpoint one folder to serve, and compare it with the checkpoint on a split.

    Args:
        quantize: what the tables are kept as; the rest stays float32
        device: where it will run; it is compiled there too
        split: whose rows are compared
        tolerance: how far compiled and eager may differ in any row's prediction
        max_auc_change: how far quantized tables may move a task's AUC
        checkpoint: last, best or the number of a step
        overwrite: replace the artifact in `output`

    Raises ArtifactError for what cannot be exported, ParityError where the artifact's predictions are others than the
    checkpoint's; neither leaves anything behind.
    """
    import torch

    from mtlrec.distributed.process_group import process_group
    from mtlrec.serving.export import export as export_run
    from mtlrec.serving.lookup import Precision
    from mtlrec.training.progress import progress_bars

    check_split(split)
    if device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("--device cuda: torch sees no CUDA device here; export on a machine that has the GPU")
    run, output = Path(run), Path(output)
    job = job_of(run, settings_of(overrides))
    precisions: dict[str, Precision] = {"int8": "int8", "fp16": "fp16", "none": "fp32"}
    if quantize not in precisions:
        raise ConfigError(f"quantize={quantize!r}: choose one of {', '.join(precisions)}")
    precision = precisions[quantize]
    with progress_bars(progress), process_group(device, job.train.timeout_s) as ranks:
        parity = export_run(run, job, output, ranks, precision, checkpoint, split, tolerance, max_auc_change, overwrite)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return ExportResult(output, precision, size, parity)


def job_of_artifact(artifact: Path, overrides: Overrides) -> JobConfig:
    """Raises ConfigError for an override of what the program was compiled with."""
    from mtlrec.serving.manifest import Manifest

    manifest = Manifest.read(artifact)
    job, compiled = (manifest.job_config(artifact, settings) for settings in (settings_of(overrides), []))
    for section in SECTIONS_OF_PROGRAM:
        if getattr(job, section) != getattr(compiled, section):
            raise ConfigError(f"--set {section}...: an artifact's {section} cannot be changed; export the run anew")
    return job


def evaluate_artifact(artifact: Path, job: JobConfig, split: str) -> EvaluateResult:
    """The split's metrics, of the compiled program."""
    from mtlrec.distributed.process_group import process_group
    from mtlrec.evaluation.evaluate import evaluate
    from mtlrec.models.build import build_train_module
    from mtlrec.serving.predictor import Predictor
    from mtlrec.serving.program import ServedModule
    from mtlrec.training.loading import loader_of

    predictor = Predictor(artifact)
    with process_group(predictor.manifest.device, job.train.timeout_s) as ranks:
        loader = loader_of(job, split, ranks, expected_fingerprints=predictor.manifest.id_fingerprints)
        unbalanced = job.model_copy(update={"loss": LossConfig()})  # whose method need not be installed here
        model = ServedModule(predictor.function, build_train_module(unbalanced).loss.multitask.to(ranks.device))
        metrics = evaluate(model, loader, job, ranks, "evaluate")
        return EvaluateResult(str(artifact), {split: metrics.compute(predictor.manifest.calibration)})


def predict_by_artifact(artifact: Path, source: str, output: Path) -> PredictResult:
    from mtlrec.serving.files import score_files
    from mtlrec.serving.predictor import Predictor

    predictor = Predictor(artifact)
    rows, errors = score_files(predictor, source, output)
    manifest = predictor.manifest
    return PredictResult(str(artifact), rows, errors, output, None, manifest.calibration, manifest.fused_score)
