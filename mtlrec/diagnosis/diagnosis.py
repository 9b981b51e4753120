"""What a trained model does on real rows: its gates and experts, its tasks' gradients, its tables, its probabilities.

Training looks at one batch now and then, `mtlrec diagnose` and a comparison's report at a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import pyarrow as pa
import torch

from mtlrec.batch import Batch
from mtlrec.checkpoints.job_state import read_job_state
from mtlrec.compat.fbgemm.fused_lookups import uncounted
from mtlrec.config import JobConfig
from mtlrec.data.collate import rows_of
from mtlrec.data.loader import Loader
from mtlrec.diagnosis.level_sums import Level, LevelSums, levels_of
from mtlrec.diagnosis.table_use import LookupCounts, TableUse, table_uses
from mtlrec.diagnosis.task_gradients import TaskGradients, in_place_of_balancing, probe
from mtlrec.distributed.process_group import Ranks
from mtlrec.evaluation.evaluate import check_finite
from mtlrec.evaluation.slices import SliceRows, Slices
from mtlrec.evaluation.task_metrics import TaskMetrics
from mtlrec.layers import diagnose
from mtlrec.metrics.binary import BinarySums, calibration_curve
from mtlrec.metrics.metric import sum_over_ranks
from mtlrec.models.train_module import StepOutput
from mtlrec.training.loading import log_skipped_rows
from mtlrec.training.progress import watched
from mtlrec.training.sharded import ShardedModel, autocast
from mtlrec.training.step import DecayedWeights


@dataclass(frozen=True)
class Curve:
    """Of p(task) over all impressions, in buckets of equal weight, in the order of the prediction.

    Attributes:
        predicted: mean probabilities
        observed: shares of positives
        rows: of each bucket; where rows have weights, scaled so that the buckets add up to the rows
        positives: of all buckets together, each row counting as one
    """

    predicted: list[float]
    observed: list[float]
    rows: list[float]
    positives: int


@dataclass(frozen=True)
class Diagnosis:
    """Of `rows` rows.

    Attributes:
        levels: of the fusion layer, in order; none where it has no gates
        tasks: names, T of them
        gradient_norm: [T], of each task's loss times its weight (as decayed by then; a balancing has no say) with
            respect to the pooled embeddings, the root of its mean square over batches
        gradient_cosine: [T][T], between these gradients, over all batches together; NaN for a task without rows
        tables: what is looked up in each; in training by this rank alone
        curves: of each binary task; not of training's looks
        slices: of the column that was asked for, if one was
    """

    rows: int
    levels: list[Level]
    tasks: list[str]
    gradient_norm: list[float]
    gradient_cosine: list[list[float]]
    tables: list[TableUse]
    curves: dict[str, Curve] = field(default_factory=dict)
    slices: Slices | None = None


def diagnose_run(
    model: ShardedModel,
    loader: Loader,
    job: JobConfig,
    ranks: Ranks,
    most_batches: int | None = None,
    slice_by: str | None = None,
) -> Diagnosis:
    """Collective. Looks at a split's rows, or its first batches; the model is left as it was, its tables too.

    `slice_by` is a column that the loader keeps. Raises NonFiniteError where the model's output is, naming the files.
    """
    steps = loader.steps_per_epoch if most_batches is None else min(most_batches, loader.steps_per_epoch)
    slices = SliceRows(slice_by, job) if slice_by is not None else None
    metrics = TaskMetrics.of(job, ranks.device)
    shown: list[pa.Table] = []

    def batches() -> Iterator[Batch]:
        with closing(loader.cuts()) as cuts:
            for of_batch, size in watched(islice(cuts, steps), steps, "diagnose", ranks.is_first):
                if slices:
                    shown[:] = [rows_of(of_batch)]
                yield loader.batch(of_batch, size)

    def add(step: StepOutput) -> None:
        check_finite(metrics.losses.predictions(step.outputs), job, step.batch.origin)
        metrics.update(step)
        if slices:
            slices.add(shown[0][slice_by], step)

    if model.checkpoint is not None:
        saved = read_job_state(model.checkpoint)
        weights = DecayedWeights.of(job, ranks.device)
        if weights is not None:
            epoch = max(0, saved.position.epoch - 1 + bool(saved.position.steps))
            model.loss.set_weights(weights.at(max(0, saved.step - 1), epoch))
    found = diagnose_batches(model, batches(), job, ranks, add, together=True)
    log_skipped_rows(loader, ranks)
    curves = {task.name: _curve(metrics.predicted(index)) for index, task in enumerate(job.tasks) if task.is_binary}
    return replace(found, curves=curves, slices=slices.compute() if slices else None)


def diagnose_batches(
    model: ShardedModel,
    batches: Iterable[Batch],
    job: JobConfig,
    ranks: Ranks,
    after_batch: Callable[[StepOutput], None] = lambda step: None,
    together: bool = False,
) -> Diagnosis:
    """Collective; every rank brings as many batches. Nothing that training uses is otherwise afterwards.

    Args:
        after_batch: is given what the model made of each
        together: whether ranks tell each other which rows of the tables they looked up, rather than keep to their own
    """
    network, lookups = model.network, LookupCounts(job)
    gradients = TaskGradients(len(job.tasks), ranks.device)
    sums: dict[str, LevelSums] = {}
    rows = torch.zeros((), dtype=torch.float64, device=ranks.device)
    training = network.training
    network.eval()
    try:
        with in_place_of_balancing(model, gradients), torch.no_grad(), uncounted(network):
            for batch in batches:
                batch = batch.to(ranks.device)
                real = batch.row_mask > 0
                rows += real.sum()
                with autocast(job, ranks.device):
                    for name, seen in diagnose(network, batch.dense, batch.sparse).items():
                        sums.setdefault(name, LevelSums(seen)).add(seen, real)
                    after_batch(probe(model, batch))
                lookups.add(batch)
                ranks.liveness.tick()
            uses = table_uses(network.sparse_arch, lookups.compute(together), job, ranks)
    finally:
        network.train(training)
    norms, cosines = gradients.compute()
    total = int(sum_over_ranks(rows).item())
    tasks = [task.name for task in job.tasks]
    return Diagnosis(total, levels_of(sums, network.over_arch.fusion, tasks), tasks, norms, cosines, uses)


def _curve(tally: BinarySums) -> Curve:
    weight, predicted, observed = calibration_curve(tally.histogram_of_rows())
    return Curve(predicted.tolist(), observed.tolist(), weight.tolist(), int(tally.totals[1].item()))
