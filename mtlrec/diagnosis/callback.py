"""Diagnosis during training: what `mtlrec diagnose` shows, of one batch a rank, for TensorBoard."""

from __future__ import annotations

from contextlib import closing

from mtlrec.batch import Batch
from mtlrec.data.loader import Loader
from mtlrec.diagnosis.board import write_diagnosis
from mtlrec.diagnosis.diagnosis import diagnose_batches
from mtlrec.distributed.process_group import on_first_rank
from mtlrec.models.train_module import StepOutput
from mtlrec.training.telemetry import Telemetry
from mtlrec.training.trainer import Callback, Trainer


class PeriodicDiagnosis(Callback):
    """Diagnoses the first batch of the valid split every `train.diagnose_every` steps and at the end.

    Training is bit for bit as without it.
    """

    def __init__(self, valid_loader: Loader, telemetry: Telemetry) -> None:
        self._loader, self._telemetry = valid_loader, telemetry
        self._batch: Batch | None = None

    def after_step(self, trainer: Trainer, output: StepOutput) -> None:
        every = trainer.job.train.diagnose_every
        if every and trainer.step % every == 0 and trainer.step < trainer.total_steps:
            self._diagnose(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.job.train.diagnose_every:
            self._diagnose(trainer)

    def _diagnose(self, trainer: Trainer) -> None:
        if self._batch is None:
            with closing(self._loader.epoch()) as batches:
                self._batch = next(batches)
        trainer.check_losses()
        trainer.pipeline.detach()  # batch norm statistics stay each rank's own: averages of them would be rounded
        diagnosis = diagnose_batches(trainer.model, [self._batch], trainer.job, trainer.ranks)
        on_first_rank(trainer.ranks, lambda: write_diagnosis(self._telemetry, trainer.step, diagnosis))
