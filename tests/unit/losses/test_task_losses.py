"""Tasks whose losses are equal, computed at once, against a loop over the tasks; where towers start."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses import LOSSES, Binary, MultiTaskLoss, Regression, TaskLoss, TaskLosses, WatchTime
from mtlrec.losses.task_loss import LabelRule
from tests.support.labels import batch_of, loss_parts

SORTED: list[TaskLoss] = [Binary(), Binary(), Binary(pos_weight=3.0), Regression(), Regression(), WatchTime()]
MIXED: list[TaskLoss] = [
    Regression(),
    Binary(label_smoothing=0.2),
    WatchTime(),
    Binary(pos_weight=3.0, label_smoothing=0.2),
    Binary(label_smoothing=0.2),
    Regression("huber", huber_delta=0.5),
    WatchTime(),
    Regression(),
]
ALIKE: list[TaskLoss] = [Binary(pos_weight=2.0)] * 3
GROUPINGS = pytest.mark.parametrize("losses", [SORTED, MIXED, ALIKE], ids=["sorted", "mixed", "alike"])


def outputs_of(logits: Tensor, conditional: Tensor) -> HeadOutput:
    """With a probability over all impressions that is not the one the loss is taken on."""
    return HeadOutput(logits, logsigmoid(logits), logsigmoid(-logits), logsigmoid(logits) + logsigmoid(conditional))


def rows_of(losses: list[TaskLoss], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, others, and targets that fit each task; float64."""
    generator = torch.Generator().manual_seed(seed)
    logits, others = (torch.randn(40, len(losses), generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.rand(40, len(losses), generator=generator, dtype=torch.float64) * 3
    flags = [task for task, loss in enumerate(losses) if loss.label_rule == "flag"]
    targets[:, flags] = (targets[:, flags] < 1).double()
    return logits, others, targets


def by_hand(loss: TaskLoss, z: Tensor, y: Tensor) -> Tensor:
    """[B], of one task."""
    match loss:
        case Binary(pos_weight=weight, label_smoothing=smoothing):
            y = y * (1 - smoothing) + smoothing / 2
            return -(weight * y * z.sigmoid().log() + (1 - y) * (1 - z.sigmoid()).log())
        case Regression(loss="mse"):
            return (z - y) ** 2
        case Regression(huber_delta=delta):
            error = (z - y).abs()
            return torch.where(error < delta, error**2 / 2, delta * (error - delta / 2))
        case WatchTime():
            return y * softplus(-z) + softplus(z)
    raise AssertionError(loss)


@GROUPINGS
def test_groups_of_equal_losses_match_a_loop_over_tasks(losses: list[TaskLoss]) -> None:
    logits, others, targets = rows_of(losses)
    found = TaskLosses(losses).row_losses(outputs_of(logits, others), targets)
    expected = torch.stack([by_hand(loss, logits[:, t], targets[:, t]) for t, loss in enumerate(losses)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@GROUPINGS
def test_predictions_match_a_loop_over_tasks(losses: list[TaskLoss]) -> None:
    logits, others, _ = rows_of(losses)
    found = TaskLosses(losses).predictions(outputs_of(logits, others))
    for task, loss in enumerate(losses):
        z = logits[:, task]
        p = z.sigmoid() * others[:, task].sigmoid()
        expected = {Binary: p, Regression: z, WatchTime: z.exp()}[type(loss)]
        torch.testing.assert_close(found[:, task], expected, rtol=1e-12, atol=1e-12)


@GROUPINGS
def test_the_loss_and_its_gradients_match_a_loop_over_tasks(losses: list[TaskLoss]) -> None:
    logits, others, targets = rows_of(losses)
    generator = torch.Generator().manual_seed(1)
    in_space = torch.rand(targets.shape, generator=generator) < 0.6
    weights = torch.rand(targets.shape, generator=generator, dtype=torch.float64) * 2
    task_weights = [0.5 * (task + 1) for task in range(len(losses))]
    grouped, looped = (logits.clone().requires_grad_() for _ in range(2))
    batch = batch_of(targets, in_space, sample_weights=weights)
    total, report = MultiTaskLoss(losses, task_weights).double()(outputs_of(grouped, others), *loss_parts(batch))
    means = []
    for task, loss in enumerate(losses):
        inside = in_space[:, task]
        rows = by_hand(loss, looped[inside, task], targets[inside, task])
        means.append((weights[inside, task] * rows).sum() / weights[inside, task].sum())
    expected = sum(weight * mean for weight, mean in zip(task_weights, means, strict=True))
    total.backward()
    torch.as_tensor(expected).backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(report.losses, torch.stack(means), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grouped.grad, looped.grad, rtol=1e-12, atol=1e-12)
    assert report.coefficients.tolist() == task_weights
    assert report.rows.tolist() == in_space.sum(0).tolist()


@pytest.mark.parametrize(("loss", "mean"), [(Binary(), 0.01), (Regression(), -3.5), (WatchTime(), 42.0)])
def test_a_tower_can_start_at_the_mean_of_the_labels(loss: TaskLoss, mean: float) -> None:
    z = torch.full((1, 1), loss.initial_value(mean), dtype=torch.float64)
    found = loss.predictions(HeadOutput(z, logsigmoid(z), logsigmoid(-z), logsigmoid(z)))
    assert found.item() == pytest.approx(mean)


@pytest.mark.parametrize(("loss", "mean"), [(Binary(), 0.0), (Binary(), 1.0), (WatchTime(), 0.0), (Binary(), math.nan)])
def test_a_mean_that_no_output_predicts_is_refused(loss: TaskLoss, mean: float) -> None:
    with pytest.raises(ValueError, match="the mean of a"):
        loss.initial_value(mean)


def test_an_unknown_regression_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="mse or huber"):
        Regression("l1")  # type: ignore[arg-type]


def test_every_kind_of_task_has_its_loss() -> None:
    assert {kind: (loss.label_rule, loss.is_probability) for kind, loss in LOSSES.items()} == {
        "binary": ("flag", True),
        "regression": ("number", False),
        "watch_time": ("non_negative", False),
    }


@dataclass(frozen=True)
class Poisson(TaskLoss):
    """A loss written outside mtlrec: of counts, exp(z) their mean."""

    label_rule: ClassVar[LabelRule] = "non_negative"

    def row_losses(self, outputs: HeadOutput, targets: Tensor) -> Tensor:
        return outputs.value.exp() - targets * outputs.value

    def predictions(self, outputs: HeadOutput) -> Tensor:
        return outputs.value.exp()

    def initial_value(self, mean: float) -> float:
        return math.log(mean)


def test_a_loss_of_ones_own_stands_among_the_others() -> None:
    losses: list[TaskLoss] = [Binary(), Poisson(), Binary(), Poisson()]
    logits, others, targets = rows_of(losses)
    found = TaskLosses(losses).row_losses(outputs_of(logits, others), targets)
    z, y = logits[:, [1, 3]].numpy(), targets[:, [1, 3]].numpy()
    np.testing.assert_allclose(found[:, [1, 3]], np.exp(z) - y * z)
