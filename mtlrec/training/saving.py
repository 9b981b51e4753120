"""Checkpoints of a training: when they are saved, and how a job continues from one."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import JobState, check_tasks, differences, read_job_state
from mtlrec.checkpoints.reader import load_tensors
from mtlrec.checkpoints.table_states import ColumnRanges, take_other_cuts
from mtlrec.config import JobConfig
from mtlrec.data.loader import check_id_fingerprints
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.errors import CheckpointError
from mtlrec.io import write_text
from mtlrec.metrics import Metrics
from mtlrec.models.train_module import StepOutput
from mtlrec.run_folder import RunFolder
from mtlrec.training.trainer import Callback, Trainer, set_random_state

logger = logging.getLogger(__name__)


class Saving(Callback):
    """Writes the run's config, plan and checkpoints; `resume` continues from the last one.

    A checkpoint is saved every `train.checkpoint_every` steps, at the end, before a stop, and with `train.keep_best`
    before every evaluation: a fault in the valid split must not cost what was trained.
    """

    def __init__(self, job: JobConfig, run: Path, ranks: Ranks) -> None:
        self.run, self.ranks = run, ranks
        self.checkpoints = Checkpoints(
            run,
            job.train.keep_checkpoints,
            job.keep_best,
            job.train.background_checkpoints,
            job.train.timeout_s,
        )
        self._saved_step = -1

    def __enter__(self) -> Self:
        self.checkpoints.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.checkpoints.__exit__(kind, error, trace)
        if kind is None and self.ranks.is_first and self.checkpoints.keep_best:
            self._log_best()

    def write_description(self, trainer: Trainer) -> None:
        """Write config.yaml and plan.json. To be called after `resume`, which leaves the run alone if it fails."""
        if self.ranks.is_first:
            folder = RunFolder(self.run)
            write_text(folder.plan, trainer.model.plan.text())
            write_text(folder.config, yaml.safe_dump(trainer.job.dump(), sort_keys=False))

    # ---- saving

    def after_step(self, trainer: Trainer, output: StepOutput) -> None:
        train, is_last = trainer.job.train, trainer.step == trainer.total_steps
        before_evaluation = trainer.evaluation_is_due and train.keep_best is not None
        if trainer.is_due(train.checkpoint_every) or is_last or before_evaluation:
            self.save(trainer)

    def before_stop(self, trainer: Trainer) -> None:
        if self._saved_step != trainer.step:
            self.save(trainer)

    def after_evaluation(self, trainer: Trainer, split: str, metrics: Metrics) -> None:
        if split == "valid" and self._saved_step == trainer.step:
            self.checkpoints.evaluated(trainer.step, metrics)

    def save(self, trainer: Trainer) -> None:
        """Collective."""
        self.ranks.liveness.tick()
        trainer.check_losses()
        trainer.average_running_statistics()
        self._saved_step = trainer.step
        loader = trainer.loader
        state = JobState(
            step=trainer.step,
            position=trainer.position,
            files=loader.dataset.fingerprint,
            ranks=self.ranks.world_size,
            id_fingerprints=loader.id_fingerprints,
            config=trainer.job.dump(),
            plan=trainer.model.plan,
        )
        self.checkpoints.save(trainer.tensors(), state)

    def _log_best(self) -> None:
        best = self.checkpoints.best()
        if best is not None:
            by = self.checkpoints.keep_best
            logger.info(f"best by {by}: {best.name}; evaluate and predict take it with --checkpoint best")

    # ---- resuming

    def resume(self, trainer: Trainer) -> list[str]:
        """Continue from the last checkpoint: weights, optimizers, random state, position in the data.

        Collective. Returns what the job has otherwise than when it was saved, in words. Without a checkpoint nothing
        happens. On another number of ranks, or with another batch size or shuffle, the rest of the epoch is dealt anew.

        Raises CheckpointError where the checkpoint does not fit the model, or was saved in mid-epoch and the files have
        changed since.
        """
        checkpoint = on_first_rank(self.ranks, self.checkpoints.latest)
        if checkpoint is None:
            return []
        saved = read_job_state(checkpoint)
        check_tasks(checkpoint, saved, [task.name for task in trainer.job.tasks])
        self._check_files(checkpoint, saved, trainer)
        check_id_fingerprints(saved.id_fingerprints, trainer.loader.id_fingerprints)
        self._load(checkpoint, saved, trainer)
        trainer.go_to(saved.step, saved.position)
        self._saved_step = saved.step
        ranks = self.ranks.world_size
        changed = [f"{saved.ranks} ranks, now {ranks}"] if saved.ranks != ranks else []
        changed += differences(saved.config, trainer.job.dump())
        self._restore_best_metric(saved, trainer)
        return changed

    def _load(self, checkpoint: Path, saved: JobState, trainer: Trainer) -> None:
        trainer.optimizers.materialise()
        tensors = trainer.tensors()
        if saved.ranks != self.ranks.world_size:
            del tensors["random"]
        states = tensors.get("optimizer", {}).get("tables", {})
        for cut in take_other_cuts(states, _columns(saved, trainer), checkpoint):
            cut.load(checkpoint)
        load_tensors(tensors, checkpoint)
        trainer.optimizers.set_steps_done(saved.step)
        trainer.model.module.load_state_dict(tensors["model"])
        if "random" in tensors:
            set_random_state(tensors["random"][str(self.ranks.rank)], self.ranks.device)

    def _check_files(self, checkpoint: Path, saved: JobState, trainer: Trainer) -> None:
        if saved.position.steps and saved.files != trainer.loader.dataset.fingerprint:
            raise CheckpointError(
                f"{checkpoint}: saved in mid-epoch, and since then the files or their row groups have changed: the "
                "rows that are left cannot be told. Resume on the files as they were, or start a new run with "
                f"--init-from {self.run}"
            )

    def _restore_best_metric(self, saved: JobState, trainer: Trainer) -> None:
        """A resume that does not name train.keep_best must not remove what an earlier start kept by it."""
        before = saved.config.get("train", {}).get("keep_best")
        if trainer.job.train.keep_best is None and before is not None:
            train = trainer.job.train.model_copy(update={"keep_best": before})
            trainer.job = trainer.job.model_copy(update={"train": train})
            self.checkpoints.keep_best = trainer.job.keep_best


def _columns(saved: JobState, trainer: Trainer) -> dict[str, tuple[ColumnRanges, ColumnRanges]]:
    """By table's parameter: how the job's plan cuts a row, and how the checkpoint's did."""
    before, tables = saved.plan.tables, trainer.job.tables
    named = {parameter: parameter.split(".")[-2] for parameter in trainer.optimizers.columns()}
    return {
        parameter: (columns, before[named[parameter]].columns(tables[named[parameter]].dim))
        for parameter, columns in trainer.optimizers.columns().items()
        if named[parameter] in before
    }
