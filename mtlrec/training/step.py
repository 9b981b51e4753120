"""One training step: what the trainer repeats and `mtlrec bench` measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from mtlrec.batch import Batch
from mtlrec.config import DecayWeighting, DWAWeighting, JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.losses import DynamicWeightAverage, decayed_weights
from mtlrec.models.train_module import StepOutput
from mtlrec.training.loss_check import LossCheck
from mtlrec.training.optim import Optimizers
from mtlrec.training.sharded import autocast, build_sharded


class TrainingStep:
    """The sharded model, its optimizers and TorchRec's pipeline around them. Collective.

    Args:
        total_steps: of the job, which learning rates may hang on
        steps_per_epoch: what dynamic weight average compares, unless the job gives a number
        lag: of the check of losses (`LossCheck`)
    """

    def __init__(
        self, job: JobConfig, ranks: Ranks, total_steps: int, steps_per_epoch: int, lag: int | None = None
    ) -> None:
        self.job, self.ranks = job, ranks
        self.loss_check = LossCheck(job, ranks, lag)
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

        Raises StopIteration where `batches` has come to its end, NonFiniteError where a loss is not finite: of this
        step on a CPU, of the one before it on CUDA (`LossCheck`; call its `finish` before the state is used elsewhere).
        """
        self.optimizers.set_learning_rates(step)
        if self.weights is not None:
            self.model.loss.set_weights(self.weights.at(step, epoch))
        with autocast(self.job, self.ranks.device):
            done = self.pipeline.progress(batches)
        self.ranks.liveness.tick()
        self.loss_check.launched(done, step + 1)
        return done


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
