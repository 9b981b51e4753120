"""`mtlrec.train`: a job trained, saved and evaluated."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from mtlrec.api.jobs import Job, Overrides, load_job
from mtlrec.api.quiet import quiet
from mtlrec.api.results import TrainResult
from mtlrec.api.tables import Rows, with_data, write_tables
from mtlrec.run_folder import RunFolder

logger = logging.getLogger(__name__)


@quiet
def train(
    job: Job,
    output: str | os.PathLike[str],
    *,
    data: Mapping[str, Rows] | None = None,
    overrides: Overrides = (),
    resume: bool = False,
    init_from: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> TrainResult:
    """Train a job and evaluate its valid and test splits. Collective under torchrun.

    Ctrl-C and SIGTERM save after the current step and return; `resume=True` goes on from there. A second Ctrl-C, a
    second or more later, raises KeyboardInterrupt and saves nothing.

    Args:
        output: the run's folder
        data: by split (train, valid, test), in place of data.train and so on: paths, Arrow tables or data frames.
            Tables are written to `output/data`, and the run's job names them there
        resume: continue the run in `output` from its last checkpoint, if it has one
        init_from: another run, whose weights are the start
        overwrite: remove the run in `output` first
        progress: draw a bar, on a terminal or in a notebook

    Raises UserError for a job, data or folder that cannot be used, JobFailed where the training could not go on.
    """
    from mtlrec.checkpoints.warm_start import warm_start
    from mtlrec.diagnosis.callback import PeriodicDiagnosis
    from mtlrec.distributed.process_group import on_first_rank, process_group, restarts
    from mtlrec.errors import Preempted
    from mtlrec.evaluation.callback import Evaluation
    from mtlrec.training.loading import loader_of
    from mtlrec.training.progress import progress_bars
    from mtlrec.training.saving import Saving
    from mtlrec.training.telemetry import Telemetry
    from mtlrec.training.trainer import Callback, Trainer

    output, init_from, tables = Path(output), None if init_from is None else Path(init_from), data or {}
    folder, job = RunFolder(output), load_job(job, overrides)
    if data is not None:
        job = with_data(job, data, folder)
    with progress_bars(progress), process_group(job.train.device, job.train.timeout_s) as ranks, ExitStack() as stack:
        restarted, wants_resume = restarts(ranks) > 0, resume
        resume = on_first_rank(ranks, lambda: folder.prepare(wants_resume, restarted, overwrite, init_from))
        if ranks.is_first:
            stack.callback(folder.restore_data)
        on_first_rank(ranks, lambda: write_tables(tables, folder, overwrite and not resume))
        loader = loader_of(job, "train", ranks, training=True)
        telemetry, saving = Telemetry(output, ranks), Saving(job, output, ranks)
        evaluation = Evaluation(job, ranks, loader, telemetry)
        callbacks: list[Callback] = [telemetry, saving, evaluation]
        if "valid" in evaluation.loaders:  # before the evaluation, whose line in the log says that the step is done
            callbacks.insert(2, PeriodicDiagnosis(evaluation.loaders["valid"], telemetry))
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
            return TrainResult(output, {}, trainer.step, "interrupted" if stopped.interrupted else "preempted")
        except KeyboardInterrupt:
            if ranks.is_first:
                logger.info(f"interrupted after step {trainer.step}; {_what_is_left(folder)}")
            raise
        return TrainResult(output, evaluation.final, trainer.step)


def _what_is_left(folder: RunFolder) -> str:
    checkpoints = folder.complete_checkpoints()
    return f"--resume goes on from {checkpoints[-1].name}" if checkpoints else "no checkpoint was saved"
