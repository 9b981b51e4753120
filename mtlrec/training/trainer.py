"""The training loop: steps (`step.py`), and around them logs, evaluations and checkpoints."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import torch
import yaml

from mtlrec.batch import Batch
from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.checkpoints.job_state import JobState, check_tasks, differences, read_job_state
from mtlrec.checkpoints.reader import load_tensors
from mtlrec.checkpoints.table_states import Columns, take_other_cuts
from mtlrec.checkpoints.warm_start import WarmStart, warm_start
from mtlrec.config import JobConfig
from mtlrec.data.loader import Loader, check_inputs
from mtlrec.data.order import Position
from mtlrec.diagnosis.board import write_diagnosis
from mtlrec.diagnosis.diagnosis import diagnose_batches
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.errors import CheckpointError, Preempted
from mtlrec.evaluation.evaluate import evaluate
from mtlrec.io import write_text
from mtlrec.metrics.task_metrics import Metrics
from mtlrec.models.train_module import StepOutput
from mtlrec.run_folder import RunFolder
from mtlrec.training.loading import loader_of, say_what_was_skipped
from mtlrec.training.optim import learning_rate
from mtlrec.training.preemption import Preemption
from mtlrec.training.step import TrainingStep
from mtlrec.training.telemetry import Telemetry

logger = logging.getLogger(__name__)


class Trainer:
    """Trains `job` into the folder `run`, together with the other ranks.

    Args:
        run: config.yaml, plan.json, metrics.jsonl, TensorBoard events and checkpoints go here
    """

    def __init__(self, job: JobConfig, run: Path, ranks: Ranks) -> None:
        self.job, self.run, self.ranks = job, run, ranks
        self.loader = loader_of(job, "train", ranks, training=True)
        self.step, self.position, self._saved_step = 0, Position(), -1
        self._looked_at: Batch | None = None
        evaluated = [split for split in ("valid", "test") if getattr(job.data, split)]
        self.evaluation_loaders = {
            split: loader_of(job, split, ranks, trained_on=self.loader.inputs) for split in evaluated
        }
        self.total_steps = self._steps_until_the_end()
        self._batches = self.loader.epoch(self.position)  # read while the model is built
        try:
            self._take_step = TrainingStep(job, ranks, self.total_steps, self.loader.steps_per_epoch)
        except BaseException:
            self.close()
            raise
        self.model, self.optimizers = self._take_step.model, self._take_step.optimizers
        self.pipeline = self._take_step.pipeline
        train = job.train
        self.preemption = Preemption(ranks)
        self.checkpoints = Checkpoints(
            run, train.keep_checkpoints, train.keep_best, train.background_checkpoints, train.timeout_s
        )

    def close(self) -> None:
        """Ends the thread that reads: Python does not end well with one in the middle of Arrow."""
        self._batches.close()

    # ---- starting

    def describe(self) -> None:
        """Writes config.yaml and plan.json. After `resume`: a job that does not fit leaves the run as it was."""
        if self.ranks.is_first:
            folder = RunFolder(self.run)
            write_text(folder.plan, self.model.plan.text())
            write_text(folder.config, yaml.safe_dump(self.job.dump(), sort_keys=False))

    def init_from(self, run: Path) -> WarmStart:
        return warm_start(self.model.module, self.job, run, self.ranks)

    def resume(self) -> list[str]:
        """Continues from the last checkpoint: weights, optimizers, random state, position in the data. Returns what
        the job has otherwise than when it was saved, in words.

        Without a checkpoint it stands at the beginning. On another number of ranks, or with another batch size or
        shuffle, the rest of the epoch is dealt anew. Raises CheckpointError where the checkpoint does not fit the
        model, or was made in mid-epoch and the files have changed since.
        """
        checkpoint = on_first_rank(self.ranks, self.checkpoints.latest)
        if checkpoint is None:
            return []
        saved = read_job_state(checkpoint)
        check_tasks(checkpoint, saved, [task.name for task in self.job.tasks])
        self._check_files(checkpoint, saved)
        check_inputs(saved.inputs, self.loader.inputs)
        self._batches.close()
        self._batches = self.loader.epoch(saved.position)
        self.optimizers.materialise()
        tensors = self._tensors()
        if saved.ranks != self.ranks.world_size:
            del tensors["random"]
        otherwise = take_other_cuts(tensors.get("optimizer", {}).get("tables", {}), self._columns(saved), checkpoint)
        for cut in otherwise:
            cut.load(checkpoint)
        load_tensors(tensors, checkpoint)
        self.optimizers.set_steps_done(saved.step)
        self.model.module.load_state_dict(tensors["model"])
        if "random" in tensors:
            _set_random_state(tensors["random"][str(self.ranks.rank)], self.ranks.device)
        self.step, self.position, self._saved_step = saved.step, saved.position, saved.step
        self.total_steps = self.optimizers.total_steps = self._steps_until_the_end()
        ranks = [f"{saved.ranks} ranks, now {self.ranks.world_size}"] if saved.ranks != self.ranks.world_size else []
        changed = ranks + differences(saved.config, self.job.dump())
        self._keep_the_best_that_was_kept(saved)
        return changed

    def _keep_the_best_that_was_kept(self, saved: JobState) -> None:
        """A resume that does not name train.keep_best must not remove what an earlier start kept by it."""
        before = saved.config.get("train", {}).get("keep_best")
        if self.job.train.keep_best is None and before is not None:
            train = self.job.train.model_copy(update={"keep_best": before})
            self.job = self.job.model_copy(update={"train": train})
            self.checkpoints.keep_best = before

    def _columns(self, saved: JobState) -> dict[str, tuple[Columns, Columns]]:
        """By table's parameter: how the job's plan cuts a row, and how the checkpoint's did."""
        before, tables = saved.plan.tables, self.job.tables
        named = {parameter: parameter.split(".")[-2] for parameter in self.optimizers.columns()}
        return {
            parameter: (columns, before[named[parameter]].columns(tables[named[parameter]].dim))
            for parameter, columns in self.optimizers.columns().items()
            if named[parameter] in before
        }

    def _check_files(self, checkpoint: Path, saved: JobState) -> None:
        if saved.position.steps and saved.files != self.loader.dataset.fingerprint:
            raise CheckpointError(
                f"{checkpoint}: saved in mid-epoch, and since then the files or their row groups have changed: the "
                "rows that are left cannot be told. Resume on the files as they were, or start a new run with "
                f"--init-from {self.run}"
            )

    def _steps_until_the_end(self) -> int:
        """The number of the last step. Epochs before may have had another length, on another number of ranks."""
        epochs = self.job.train.epochs - self.position.epoch
        left = self.loader.steps_left(self.position) + (epochs - 1) * self.loader.steps_per_epoch if epochs > 0 else 0
        return min(self.step + left, self.job.train.max_steps or self.step + left)

    # ---- training

    def fit(self) -> dict[str, Metrics]:
        """Trains to the last step, saves, and returns the final metrics of the valid and test splits.

        Raises Preempted after SIGTERM, when everything is saved.
        """
        log = Telemetry(self.run, self.total_steps, self.step, self.ranks.is_first)
        with self.preemption, log as telemetry, self.checkpoints:
            if self._evaluation_is_missing(telemetry):
                self._evaluate("valid", telemetry)
            while self.step < self.total_steps:
                self._epoch(telemetry)
            self._batches.close()
            self.pipeline.detach()
            final = {split: self._evaluate(split, telemetry) for split in self.evaluation_loaders}
            self._look_inside(telemetry)
        best = self.checkpoints.best() if self.ranks.is_first and self.job.train.keep_best else None
        if best is not None:
            logger.info(
                f"best by {self.job.train.keep_best}: {best.name}; evaluate and predict take it with --checkpoint best"
            )
        return final

    def _evaluation_is_missing(self, telemetry: Telemetry) -> bool:
        """Collective. Whether the run ended between the checkpoint that it goes on from and its evaluation."""
        if self.step == 0 or not self._evaluates():
            return False
        return not on_first_rank(self.ranks, lambda: telemetry.has(self.step, "valid"))

    def _epoch(self, telemetry: Telemetry) -> None:
        """The rest of the current epoch, or of the job."""
        self.model.module.train()
        steps = min(self.loader.steps_left(self.position), self.total_steps - self.step)
        clock = _Clock(self.loader, self.job.data.batch_size * self.ranks.world_size)
        try:
            for _ in range(steps):
                report = self._step()
                self._log(report, telemetry, clock)
                if not self.position.steps:
                    self._next_epoch()
                self._on_schedule(telemetry, clock)
                self._stop_if_asked()
        except BaseException:
            self._batches.close()
            raise
        if self.position.steps:  # a job that ends in mid-epoch leaves batches behind
            self._batches.close()
            say_what_was_skipped(self.loader, self.ranks)
        self.pipeline.reset()

    def _stop_if_asked(self) -> None:
        """Collective."""
        if self.preemption.is_due():
            self._save_unless_done()
            raise Preempted(self.step)

    def _next_epoch(self) -> None:
        """Collective. Its first rows are read while this one's model is saved and evaluated."""
        say_what_was_skipped(self.loader, self.ranks)
        self._batches.close()
        if self.step < self.total_steps:
            self._batches = self.loader.epoch(self.position)

    def _step(self) -> StepOutput:
        done = self._take_step(self._batches, self.step, self.position.epoch)
        self.step, self.position = self.step + 1, self.loader.after(self.position)
        return done

    # ---- between steps

    def _on_schedule(self, telemetry: Telemetry, clock: _Clock) -> None:
        step, train = self.step, self.job.train
        epoch_ends, job_ends = not self.position.steps, step == self.total_steps
        evaluates = self._evaluates()
        saves = (
            _due(step, train.checkpoint_every, epoch_ends) or job_ends or (evaluates and train.keep_best is not None)
        )
        looks = train.diagnose_every > 0 and step % train.diagnose_every == 0 and not job_ends
        with clock.paused():
            if evaluates or saves:
                self.model.average_running_statistics()
            if saves:  # first: a fault in the valid split must not cost what was trained
                self._save()
            if evaluates or looks:
                self.pipeline.detach()
            if looks:
                self._look_inside(telemetry)
            if evaluates:
                self._evaluate("valid", telemetry)

    def _evaluates(self) -> bool:
        """Whether after this step the valid split is; after the last one it is anyway."""
        due = _due(self.step, self.job.train.eval_every, not self.position.steps)
        return "valid" in self.evaluation_loaders and due and self.step < self.total_steps

    def _evaluate(self, split: str, telemetry: Telemetry) -> Metrics:
        loader = self.evaluation_loaders[split]
        tallies = evaluate(self.model.module, loader, self.job, self.ranks, after_batch=lambda _: self._stop_if_asked())
        metrics = tallies.compute()
        if split == "valid" and self._saved_step == self.step:
            self.checkpoints.evaluated(self.step, metrics)
        telemetry.evaluation(self.step, split, metrics)  # last: a resume looks there whether it was done
        return metrics

    def _look_inside(self, telemetry: Telemetry) -> None:
        """Collective. What `mtlrec diagnose` shows, of one batch a rank, to TensorBoard; training is as without it."""
        if not self.job.train.diagnose_every or "valid" not in self.evaluation_loaders:
            return
        if self._looked_at is None:
            with closing(self.evaluation_loaders["valid"].epoch()) as batches:
                self._looked_at = next(batches)
        found = diagnose_batches(self.model, [self._looked_at], self.job, self.ranks)
        on_first_rank(self.ranks, lambda: write_diagnosis(telemetry, self.step, found))

    def _save_unless_done(self) -> None:
        if self._saved_step != self.step:
            self.model.average_running_statistics()
            self._save()

    def _save(self) -> None:
        self.ranks.liveness.tick()
        self._saved_step = self.step
        files, ranks = self.loader.dataset.fingerprint, self.ranks.world_size
        state = JobState(self.step, self.position, files, ranks, self.loader.inputs, self.job.dump(), self.model.plan)
        self.checkpoints.save(self._tensors(), state)

    def _tensors(self) -> dict[str, Any]:
        optimizer = self.optimizers.state()
        return {
            "model": self.model.state(),
            **({"optimizer": optimizer} if optimizer else {}),
            "random": {str(self.ranks.rank): _random_state(self.ranks.device)},
        }

    def _log(self, done: StepOutput, telemetry: Telemetry, clock: _Clock) -> None:
        clock.steps += 1
        step = self.step
        if step % self.job.train.log_every and step != self.total_steps:
            return
        losses = done.report.losses.tolist()
        weights = done.report.coefficients.tolist()
        values = {"loss": sum(w * loss for w, loss in zip(weights, losses, strict=True))}
        values |= {f"loss/{task.name}": loss for task, loss in zip(self.job.tasks, losses, strict=True)}
        if self.job.loss.weighting.kind != "static":
            values |= {f"weight/{task.name}": weight for task, weight in zip(self.job.tasks, weights, strict=True)}
        for part in ("dense", "sparse"):
            values[f"lr/{part}"] = learning_rate(getattr(self.job.optim, part), step - 1, self.total_steps)
        telemetry.step(step, values | clock.read())


class _Clock:
    """Samples per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self, loader: Loader, samples_per_step: int) -> None:
        self.loader, self.samples_per_step, self.steps = loader, samples_per_step, 0
        self._started, self._waited = time.perf_counter(), loader.wait_s

    def paused(self) -> AbstractContextManager[None]:
        return _Pause(self)

    def shift(self, seconds: float) -> None:
        self._started += seconds

    def read(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self._started
        waited = self.loader.wait_s - self._waited
        rates = {"samples_per_s": self.steps * self.samples_per_step / elapsed, "data_wait": waited / elapsed}
        self.steps, self._started, self._waited = 0, time.perf_counter(), self.loader.wait_s
        return rates


class _Pause(AbstractContextManager[None]):
    """Evaluations and checkpoints are not training time."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.shift(time.perf_counter() - self.started)


def _due(step: int, every: int, epoch_ends: bool) -> bool:
    return step % every == 0 if every else epoch_ends


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
