"""One training step: what the trainer repeats and `mtlrec bench` measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtlrec.batch import Batch
from mtlrec.config import DecayWeighting, DWAWeighting, JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import NonFiniteError
from mtlrec.losses import DynamicWeightAverage, decayed_weights
from mtlrec.models.train_module import StepOutput
from mtlrec.training.optim import Optimizers
from mtlrec.training.sharded import autocast, build_sharded


class TrainingStep:
    """The sharded model, its optimizers and TorchRec's pipeline around them. Collective.

    Args:
        total_steps: of the job, which learning rates may hang on
        steps_per_epoch: what dynamic weight average compares, unless the job gives a number
    """

    def __init__(self, job: JobConfig, ranks: Ranks, total_steps: int, steps_per_epoch: int) -> None:
        self.job, self.ranks = job, ranks
        self.model = build_sharded(job, ranks)
        self.optimizers = Optimizers(self.model.module, job, total_steps)
        self.pipeline: TrainPipelineSparseDist[Batch, StepOutput] = TrainPipelineSparseDist(
            self.model.module, self.optimizers.combined, ranks.device, execute_all_batches=True
        )
        self.weights = DecayedWeights.of(job, ranks.device)
        weighting, balancing = job.loss.weighting, self.model.loss.balancing
        if isinstance(balancing, DynamicWeightAverage) and isinstance(weighting, DWAWeighting) and not weighting.every:
            balancing.window = steps_per_epoch

    def __call__(self, batches: Iterator[Batch], step: int, epoch: int = 0) -> StepOutput:
        """Takes the step after `step` others, in `epoch` (from 0).

        Raises StopIteration where `batches` has come to its end, NonFiniteError where a loss is not finite.
        """
        self.optimizers.set_learning_rates(step)
        if self.weights is not None:
            self.model.loss.set_weights(self.weights.at(step, epoch))
        with autocast(self.job, self.ranks.device):
            done = self.pipeline.progress(batches)
        self.ranks.liveness.tick()
        self._stop_if_not_finite(done, step + 1)
        return done

    def _stop_if_not_finite(self, done: StepOutput, step: int) -> None:
        """The report's losses are global, so all ranks stop together; they tell each other whose rows it was."""
        finite = torch.isfinite(done.report.losses)
        if finite.all():
            return
        tasks = [task.name for task, fine in zip(self.job.tasks, finite.tolist(), strict=True) if not fine]
        everywhere: list[str | None] = [None] * self.ranks.world_size
        dist.all_gather_object(everywhere, "" if done.report.local_sums.isfinite().all() else done.batch.origin)
        files = ", ".join(dict.fromkeys(origin for origin in everywhere if origin)) or "every file of the batch"
        raise NonFiniteError(
            f"step {step}: the loss of {', '.join(tasks)} is not finite; rows from {files}. "
            "Look for NaN or huge values there, or lower optim.dense.lr or optim.sparse.lr"
        )


@dataclass(frozen=True)
class DecayedWeights:
    """The tasks' weights where they decay, [T] float64 each; on the device, so that no step waits for a copy."""

    initial: Tensor
    rate: Tensor
    counts_epochs: bool

    @staticmethod
    def of(job: JobConfig, device: torch.device) -> DecayedWeights | None:
        """None where the job's weights do not decay."""
        weighting = job.loss.weighting
        if not isinstance(weighting, DecayWeighting):
            return None
        initial = [weighting.initial.get(task.name, task.weight) for task in job.tasks]
        rate = [weighting.rate.get(task.name, 1.0) for task in job.tasks]
        return DecayedWeights(
            torch.tensor(initial, dtype=torch.float64, device=device),
            torch.tensor(rate, dtype=torch.float64, device=device),
            counts_epochs=weighting.unit == "epoch",
        )

    def at(self, step: int, epoch: int) -> Tensor:
        """[T], of the step after `step` others."""
        return decayed_weights(self.initial, self.rate, epoch if self.counts_epochs else step)
