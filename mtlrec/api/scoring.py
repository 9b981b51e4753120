"""`mtlrec.evaluate` and `mtlrec.predict`: how good a run or an artifact is, and what it says of rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from mtlrec.api.jobs import Overrides, check_split, settings_of
from mtlrec.api.quiet import quiet
from mtlrec.api.ranking import Ranking, rank, ranking_of
from mtlrec.api.results import EvaluateResult, PredictResult
from mtlrec.api.serving import evaluate_artifact, job_of_artifact, predict_by_artifact
from mtlrec.api.tables import Rows, on_disk, on_rows
from mtlrec.config import JobConfig
from mtlrec.config.file import job_of
from mtlrec.errors import ConfigError

if TYPE_CHECKING:
    from mtlrec.data.loader import Loader
    from mtlrec.distributed.process_group import Ranks
    from mtlrec.evaluation.task_metrics import TaskMetrics

logger = logging.getLogger(__name__)

Weights = str | Mapping[str, float]
"""By task: `{"click": 1, "like": 2}`, or as the command takes them, `click=1,like=2`."""


@quiet
def evaluate(
    run: str | os.PathLike[str] | None = None,
    split: str = "test",
    *,
    data: Rows | None = None,
    artifact: str | os.PathLike[str] | None = None,
    calibrate: Literal["platt", "isotonic"] | None = None,
    rank_metric: str | None = None,
    relevance: Weights = "",
    exponents: Weights = "",
    checkpoint: str = "last",
    overrides: Overrides = (),
    progress: bool = False,
) -> EvaluateResult:
    """Evaluate a checkpoint of a run, or an artifact. Collective under torchrun, on any number of ranks.

    Args:
        data: rows to take in place of the split's: a path, an Arrow table or a data frame
        artifact: what `export` made, in place of a run
        calibrate: fit a map of each task's probabilities on the valid split, and keep it with the checkpoint
        rank_metric: ndcg@K or hit_rate@K within metrics.group_by: search the powers of the product of predictions that
            ranks best on the valid split, and keep them with the checkpoint
        relevance: what an impression was worth; by default 1 for each binary label
        exponents: take these powers; search none and keep none
        checkpoint: last, best or the number of a step
    """
    from mtlrec.training.progress import progress_bars

    check_split(split)
    asked = {"calibrate": calibrate, "rank_metric": rank_metric, "relevance": relevance, "exponents": exponents}
    run, artifact = _run_or_artifact(run, artifact, **asked, checkpoint=checkpoint != "last")
    with progress_bars(progress), nullcontext() if data is None else on_disk(data) as path:
        if artifact is not None:
            job = job_of_artifact(artifact, overrides)
            return evaluate_artifact(artifact, job if path is None else on_rows(job, split, path), split)
        assert run is not None
        job = job_of(run, settings_of(overrides))
        job = job if path is None else on_rows(job, split, path)
        ranking = ranking_of(job, rank_metric, _words(relevance), _words(exponents))
        return _evaluate_run(run, job, split, calibrate, ranking, checkpoint)


@quiet
def predict(
    run: str | os.PathLike[str] | None = None,
    data: Rows = None,
    output: str | os.PathLike[str] | None = None,
    *,
    artifact: str | os.PathLike[str] | None = None,
    raw: bool = False,
    exponents: Weights = "",
    checkpoint: str = "last",
    overrides: Overrides = (),
    progress: bool = False,
) -> PredictResult:
    """Score rows. Labels are not needed. Collective under torchrun.

    Args:
        data: a path, glob or URI of Parquet files, an Arrow table or a data frame
        output: the Parquet file to write; a folder on several ranks. Without it the result holds the scores
        artifact: what `export` made, in place of a run
        raw: leave aside what `evaluate(calibrate=...)` has fitted
        exponents: write `fused_score` too, the product of predictions to these powers; by default with what
            `evaluate(rank_metric=...)` has kept
        checkpoint: last, best or the number of a step
    """
    from mtlrec.training.progress import progress_bars

    run, artifact = _run_or_artifact(
        run, artifact, raw=raw, exponents=exponents, checkpoint=checkpoint != "last", set=overrides
    )
    if data is None:
        raise ConfigError("data: give the rows to score: a path, a pyarrow.Table or a data frame")
    with progress_bars(progress), on_disk(data) as source, _scores_file(output) as path:
        if artifact is not None:
            result = predict_by_artifact(artifact, source, path)
        else:
            assert run is not None
            job = job_of(run, settings_of(overrides))
            result = _predict_by_run(run, job, source, path, raw, _words(exponents), checkpoint)
        if output is not None:
            return result
        import pyarrow.parquet as pq

        return replace(result, output=None, scores=pq.read_table(path))


def _evaluate_run(
    run: Path,
    job: JobConfig,
    split: str,
    calibrate: Literal["platt", "isotonic"] | None,
    ranking: Ranking | None,
    which: str,
) -> EvaluateResult:
    from mtlrec.distributed.process_group import on_first_rank, process_group
    from mtlrec.evaluation.calibration import Calibration
    from mtlrec.evaluation.evaluate import evaluate as evaluate_model
    from mtlrec.training.loading import loader_of
    from mtlrec.training.sharded import load_run

    with process_group(job.train.device, job.train.timeout_s) as ranks:
        model = load_run(job, run, ranks, which)
        checkpoint = model.checkpoint
        assert checkpoint is not None

        def loader(of: str) -> Loader:
            return loader_of(job, of, ranks, expected_fingerprints=model.id_fingerprints)

        if calibrate is not None:
            valid = evaluate_model(model.module, loader("valid"), job, ranks, "calibrate")
            _keep_calibration(valid, calibrate, job, checkpoint, ranks)
        report = None
        if ranking is None:
            metrics = evaluate_model(model.module, loader(split), job, ranks, "evaluate")
        else:
            loaders = {one: loader(one) for one in dict.fromkeys([*ranking.searched_on, split])}
            metrics, report = rank(model, loaders, split, job, ranks, ranking)
            if ranking.exponents is None:
                on_first_rank(ranks, lambda: report.score.write(checkpoint))
        calibration = on_first_rank(ranks, lambda: Calibration.read(checkpoint))
        return EvaluateResult(checkpoint.name, {split: metrics.compute(calibration)}, report)


def _predict_by_run(
    run: Path, job: JobConfig, source: str, output: Path, raw: bool, exponents: str, which: str
) -> PredictResult:
    from mtlrec.distributed.process_group import on_first_rank, process_group
    from mtlrec.evaluation.calibration import Calibration
    from mtlrec.evaluation.fused_score import FusedScore, exponents_of
    from mtlrec.evaluation.predict import predict as predict_rows
    from mtlrec.training.sharded import load_run

    given = FusedScore(exponents=exponents_of(exponents, job)) if exponents else None
    with process_group(job.train.device, job.train.timeout_s) as ranks:
        model = load_run(job, run, ranks, which)
        checkpoint = model.checkpoint
        assert checkpoint is not None
        calibration = None if raw else on_first_rank(ranks, lambda: Calibration.read(checkpoint))
        score = given or on_first_rank(ranks, lambda: FusedScore.read(checkpoint, job))
        rows = predict_rows(model, job, source, output, ranks, calibration, score)
        return PredictResult(checkpoint.name, rows, None, output, None, calibration, score)


def _run_or_artifact(
    run: str | os.PathLike[str] | None, artifact: str | os.PathLike[str] | None, **only_with_run: object
) -> tuple[Path | None, Path | None]:
    """Raises ConfigError unless one of the two is given; with an artifact, for what wants a run, or several ranks."""
    if (run is None) == (artifact is None):
        raise ConfigError("name a run's folder, or --artifact and what `mtlrec export` made: one of them")
    if artifact is None:
        return Path(run), None  # type: ignore[arg-type]  # as the test above says
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("--artifact: is scored in one process; start it without torchrun")
    for option, value in only_with_run.items():
        if value:
            raise ConfigError(
                f"--{option.replace('_', '-')}: is for a run; an artifact is what it was when it was exported"
            )
    return None, Path(artifact)


@contextmanager
def _scores_file(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("output: several ranks write their scores to a folder; name one")
    with TemporaryDirectory(prefix="mtlrec-") as folder:
        yield Path(folder) / "scores.parquet"


def _words(weights: Weights) -> str:
    return weights if isinstance(weights, str) else ",".join(f"{task}={value}" for task, value in weights.items())


def _keep_calibration(
    valid: TaskMetrics, method: Literal["platt", "isotonic"], job: JobConfig, checkpoint: Path, ranks: Ranks
) -> None:
    """Collective."""
    from mtlrec.distributed.process_group import on_first_rank
    from mtlrec.evaluation.evaluate import fit_calibration

    fitted = fit_calibration(valid, method)
    on_first_rank(ranks, lambda: fitted.write(checkpoint))
    left_out = [task.name for task in job.tasks if task.is_binary and task.name not in fitted.maps]
    if left_out and ranks.is_first:
        logger.info(f"not calibrated, one label only in the valid split: {', '.join(left_out)}")
    if ranks.is_first:
        logger.info(f"{method} fitted on {fitted.rows:,} valid rows, kept in {checkpoint}; predict applies it")
