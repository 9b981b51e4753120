"""The training loop: steps (`step.py`), and callbacks around them for logs, checkpoints, evaluation and diagnosis."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from mtlrec.config import JobConfig
from mtlrec.data.loader import Loader
from mtlrec.data.order import Position
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import Preempted
from mtlrec.metrics import Metrics
from mtlrec.models.train_module import StepOutput, TrainModule
from mtlrec.training.loading import log_skipped_rows
from mtlrec.training.preemption import Preemption
from mtlrec.training.step import TrainingStep


class Callback:
    """Does nothing; subclasses override what they need.

    Every method is collective: all ranks call it at the same step. A callback is entered when training starts and left,
    in reverse order, on every way out of it.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process, which after a resume is not the job's first."""

    def after_step(self, trainer: Trainer, output: StepOutput) -> None:
        """`trainer.step` steps are done."""

    def after_evaluation(self, trainer: Trainer, split: str, metrics: Metrics) -> None:
        """Called in reverse order: the log comes last, because a resume takes its line as proof that all is done."""

    def before_stop(self, trainer: Trainer) -> None:
        """The job was asked to stop and will, in mid-epoch or in the middle of an evaluation."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of the job."""


class Trainer:
    """Trains `job`, together with the other ranks.

    Args:
        loader: of the training split
        callbacks: called after every step in this order

    Attributes:
        step: how many steps are done
        position: where the job is in its data
        total_steps: the number of the job's last step
        paused_s: seconds spent in callbacks so far
    """

    def __init__(self, job: JobConfig, ranks: Ranks, loader: Loader, callbacks: Sequence[Callback] = ()) -> None:
        self.job, self.ranks, self.loader, self.callbacks = job, ranks, loader, list(callbacks)
        self.step, self.position, self.paused_s = 0, Position(), 0.0
        self.total_steps = self._last_step()
        self._batches = loader.epoch(self.position)  # read while the model is built
        try:
            self._take_step = TrainingStep(job, ranks, self.total_steps, loader.steps_per_epoch)
        except BaseException:
            self.close()
            raise
        self.model, self.optimizers = self._take_step.model, self._take_step.optimizers
        self.pipeline = self._take_step.pipeline
        self.preemption = Preemption(ranks)
        self._averaged_step = -1

    def close(self) -> None:
        """End the thread that reads: Python does not exit well with one in the middle of Arrow."""
        self._batches.close()

    def go_to(self, step: int, position: Position) -> None:
        """Continue after `step` steps, at `position` in the data. Epochs before it may have had another length."""
        self._batches.close()
        self.step, self.position, self._averaged_step = step, position, step  # what is saved is averaged
        self._batches = self.loader.epoch(position)
        self.total_steps = self.optimizers.total_steps = self._last_step()

    def _last_step(self) -> int:
        epochs = self.job.train.epochs - self.position.epoch
        left = self.loader.steps_left(self.position) + (epochs - 1) * self.loader.steps_per_epoch if epochs > 0 else 0
        return min(self.step + left, self.job.train.max_steps or self.step + left)

    # ---- the loop

    def fit(self) -> None:
        """Train to the last step. Raises Preempted after a request to stop, once the callbacks have saved."""
        with self.preemption, ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback)
            with self._paused():
                for callback in self.callbacks:
                    callback.on_start(self)
            while self.step < self.total_steps:
                self._epoch()
            self._batches.close()
            self.check_losses()
            for callback in self.callbacks:
                callback.on_end(self)

    def _epoch(self) -> None:
        """The rest of the current epoch, or of the job."""
        self.model.module.train()
        try:
            for _ in range(min(self.loader.steps_left(self.position), self.total_steps - self.step)):
                output = self._step()
                if not self.position.steps:
                    self._next_epoch()
                with self._paused():
                    for callback in self.callbacks:
                        callback.after_step(self, output)
                self.stop_if_asked()
        except BaseException:
            self._batches.close()
            raise
        if self.position.steps:  # a job that ends in mid-epoch leaves batches behind
            self._batches.close()
            log_skipped_rows(self.loader, self.ranks)
        self.pipeline.reset()

    def _step(self) -> StepOutput:
        output = self._take_step(self._batches, self.step, self.position.epoch)
        self.step, self.position = self.step + 1, self.loader.after(self.position)
        return output

    def _next_epoch(self) -> None:
        """Its first rows are read while callbacks save and evaluate."""
        log_skipped_rows(self.loader, self.ranks)
        self._batches.close()
        if self.step < self.total_steps:
            self._batches = self.loader.epoch(self.position)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.paused_s += time.perf_counter() - started

    # ---- what callbacks ask for; all of it collective

    def is_due(self, every: int) -> bool:
        """Whether something is due after this step: every so many steps, or where `every` is 0 after every epoch."""
        return self.step % every == 0 if every else not self.position.steps

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the valid split is evaluated after this step. At the end of the job it is in any case."""
        return bool(self.job.data.valid) and self.is_due(self.job.train.eval_every) and self.step < self.total_steps

    def stop_if_asked(self) -> None:
        """Raises Preempted if a rank was asked to stop. To be called after every step and every evaluated batch."""
        if self.preemption.is_due():
            for callback in self.callbacks:
                callback.before_stop(self)
            raise Preempted(self.step, self.preemption.interrupted)

    def check_losses(self) -> None:
        """Raises NonFiniteError where a loss of a step so far is not finite. To be called before the state is used."""
        self._take_step.loss_check.finish()

    def model_to_evaluate(self) -> TrainModule:
        """The model out of the pipeline, with the same batch norm statistics on all ranks."""
        self.check_losses()
        self.average_running_statistics()
        self.pipeline.detach()
        return self.model.module

    def average_running_statistics(self) -> None:
        """Give all ranks the same batch norm statistics, once a step: sums over ranks are rounded."""
        if self._averaged_step != self.step:
            self.model.average_running_statistics()
            self._averaged_step = self.step

    def report_evaluation(self, split: str, metrics: Metrics) -> None:
        """Tell all callbacks what a split's metrics are."""
        for callback in reversed(self.callbacks):
            callback.after_evaluation(self, split, metrics)

    def tensors(self) -> dict[str, Any]:
        """What a checkpoint keeps: the model, the optimizers, this rank's random state."""
        optimizer = self.optimizers.state()
        return {
            "model": self.model.state(),
            **({"optimizer": optimizer} if optimizer else {}),
            "random": {str(self.ranks.rank): random_state(self.ranks.device)},
        }


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
