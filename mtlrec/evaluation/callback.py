"""Evaluation during training: the valid split on schedule, every split at the end."""

from __future__ import annotations

from mtlrec.config import JobConfig
from mtlrec.data.loader import Loader
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.evaluation.evaluate import evaluate
from mtlrec.metrics import Metrics
from mtlrec.models.train_module import StepOutput
from mtlrec.training.loading import loader_of
from mtlrec.training.telemetry import Telemetry
from mtlrec.training.trainer import Callback, Trainer


class Evaluation(Callback):
    """Evaluates the valid split every `train.eval_every` steps, and the valid and test splits at the end.

    Args:
        training_loader: what the ids of the evaluated rows are held against
        telemetry: its log says which evaluations a resumed run has done already

    Attributes:
        final: the metrics of every split, once the job has come to its end
    """

    def __init__(self, job: JobConfig, ranks: Ranks, training_loader: Loader, telemetry: Telemetry) -> None:
        splits = [split for split in ("valid", "test") if getattr(job.data, split)]
        self.loaders = {
            split: loader_of(job, split, ranks, expected_fingerprints=training_loader.id_fingerprints)
            for split in splits
        }
        self._telemetry = telemetry
        self.final: dict[str, Metrics] = {}

    def on_start(self, trainer: Trainer) -> None:
        """The run may have ended between the checkpoint that it continues from and its evaluation."""
        if trainer.step == 0 or not trainer.evaluation_is_due:
            return
        if not on_first_rank(trainer.ranks, lambda: self._telemetry.has(trainer.step, "valid")):
            self._evaluate(trainer, "valid")

    def after_step(self, trainer: Trainer, output: StepOutput) -> None:
        if trainer.evaluation_is_due:
            self._evaluate(trainer, "valid")

    def on_end(self, trainer: Trainer) -> None:
        self.final = {split: self._evaluate(trainer, split) for split in self.loaders}

    def _evaluate(self, trainer: Trainer, split: str) -> Metrics:
        tallies = evaluate(
            trainer.model_to_evaluate(),
            self.loaders[split],
            trainer.job,
            trainer.ranks,
            after_batch=lambda _: trainer.stop_if_asked(),
        )
        metrics = tallies.compute()
        trainer.report_evaluation(split, metrics)
        return metrics
