"""`mtlrec.compare`: which architecture wins on one's own data, by how much, and how sure that is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtlrec.api.analysis import BATCHES, diagnose
from mtlrec.api.jobs import Job, Overrides, check_at_least, load_job
from mtlrec.api.quiet import quiet
from mtlrec.api.results import CompareResult
from mtlrec.api.tables import Rows, with_data, write_tables
from mtlrec.errors import CheckpointError, ConfigError
from mtlrec.run_folder import RunFolder

if TYPE_CHECKING:
    from mtlrec.comparison.comparison import Comparison
    from mtlrec.comparison.trials import Trials
    from mtlrec.diagnosis.diagnosis import Diagnosis


@quiet
def compare(
    job: Job,
    output: str | os.PathLike[str],
    *,
    data: Mapping[str, Rows] | None = None,
    fusions: Sequence[str] | None = None,
    heads: Sequence[str] = (),
    weightings: Sequence[str] = (),
    seeds: int = 5,
    learning_rates: Sequence[float] = (0.3, 1.0, 3.0),
    tuning_seeds: int = 1,
    match: Literal["parameters", "flops"] | None = "parameters",
    metric: str = "auc",
    jobs: int | None = None,
    slice_by: str | None = None,
    overrides: Overrides = (),
    progress: bool = False,
) -> CompareResult:
    """Train the job's data under several architectures of one size, with several seeds, and judge which is better.

    What is finished is kept in `output` and not run again. Each training is a process of its own.

    Args:
        output: the comparison's folder; given again, the comparison goes on
        data: by split, in place of data.train and so on; see `train`
        fusions, heads, weightings: their kinds; by default every fusion that goes with the job, its own of the others
        seeds: trainings of each architecture
        learning_rates: multipliers of the job's learning rates. The best on the valid split is kept
        tuning_seeds: how many of the seeds try every learning rate
        match: what is equal after the embedding lookup: the experts' widths are chosen so
        metric: judges the tasks that have it, the others are judged by their first: auc or mse
        jobs: trainings at a time; by default one per core or GPU
        slice_by: a column of the files: each task's AUC within its values
    """
    if "RANK" in os.environ:
        raise ConfigError("compare starts trainings of its own, a process each; call it without torchrun")
    check_at_least(1, seeds=seeds, tuning_seeds=tuning_seeds, learning_rates=len(learning_rates))
    output, job = Path(output), load_job(job, overrides)
    if data is not None:
        job = with_data(job, data, RunFolder(output))
    for split, files in (("valid", job.data.valid), ("test", job.data.test)):
        if not files:
            raise ConfigError(f"data.{split}: a comparison wants its files: the first chooses, the second judges")
    if fusions is not None and not fusions:
        raise ConfigError("--fusion: names no kind; leave it out for all that go with the job")

    import torch

    from mtlrec.comparison.candidates import candidates
    from mtlrec.comparison.comparison import compare as run_trials
    from mtlrec.comparison.progress import Progress
    from mtlrec.comparison.trials import Trials
    from mtlrec.evaluation.slices import check_column
    from mtlrec.metrics import JUDGES
    from mtlrec.training.progress import progress_bars

    if metric not in JUDGES:
        raise ConfigError(f"--metric {metric}: judges no model; there are {', '.join(JUDGES)}")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; name a folder")
    write_tables(data or {}, RunFolder(output))
    if slice_by is not None:
        check_column(job, "valid", slice_by)
    chosen = candidates(job, fusions, heads, weightings, match)
    trials = Trials(output, chosen, jobs or torch.cuda.device_count() or os.cpu_count() or 1)
    tuning_seeds = min(tuning_seeds, seeds)
    num_trials = len(learning_rates) * tuning_seeds + seeds - tuning_seeds
    with progress_bars(progress), trials:
        with Progress(chosen, num_trials) as bar:
            comparison = run_trials(trials, list(learning_rates), range(seeds), bar, metric, tuning_seeds)
        _write(comparison, trials, job.name, slice_by, progress)
    return CompareResult(comparison, output)


def _write(comparison: Comparison, trials: Trials, title: str, slice_by: str | None, progress: bool) -> None:
    """The table, the text and the page, what takes longest last."""
    from mtlrec.comparison.latency import latency_ms
    from mtlrec.comparison.markdown import write_markdown
    from mtlrec.comparison.report import write_report
    from mtlrec.comparison.results import write_results

    latency = latency_ms({name: one.job for name, one in trials.candidates.items()})
    write_results(comparison, latency, trials.folder / "results.parquet", title)
    write_markdown(comparison, trials.folder / "report.md", title)
    first = {name: trials.run_of(name, factor, comparison.seeds[0]) for name, factor in comparison.factors.items()}
    diagnoses = {name: _diagnosed(run, slice_by, progress) for name, run in first.items()}
    write_report(comparison, latency, trials.folder / "report.html", title, diagnoses)


def _diagnosed(run: Path, slice_by: str | None, progress: bool) -> Diagnosis:
    try:
        return diagnose(run, batches=BATCHES, slice_by=slice_by, progress=progress).diagnosis
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or remove {run}, and compare trains it again") from None
