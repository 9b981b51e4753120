"""Masked losses against a NumPy loop over rows; the global normalization against one process."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mtlrec.distributed.process_group import process_group
from mtlrec.heads import ESMM, Independent
from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses import Binary, MultiTaskLoss, Regression, decayed_weights
from tests.support.funnel import PARENTS, by_hand, rows, spaces_of
from tests.support.labels import batch_of, labeled, loss_parts
from tests.support.ranks import run_ranks

TASKS = [Binary(), Binary(), Binary(), Binary(), Regression()]
WEIGHTS = [1.0, 2.0, 0.5, 1.0, 0.25]


@pytest.mark.parametrize("kind", [Independent, ESMM])
def test_losses_match_a_loop(kind: Any) -> None:
    torch.manual_seed(0)
    head = kind(list("abcde"), PARENTS, 4)
    labels, known, weights = rows(200)
    outputs: HeadOutput = head(torch.randn(200, 5, 4) * 3)
    batch = labeled(spaces_of(head.conditional), labels, known, weights)
    loss, report = MultiTaskLoss(TASKS, WEIGHTS)(outputs, *loss_parts(batch))
    targets, space, *_ = by_hand(labels.numpy(), known.numpy(), weights.numpy(), head.conditional)
    p = 1 / (1 + np.exp(-outputs.value.detach().numpy().astype(np.float64)))
    if not head.conditional:
        p[:, 1] *= p[:, 0]
        p[:, 2] *= p[:, 1]
    total = 0.0
    for task in range(5):
        losses = []
        for i in np.flatnonzero(space[:, task]):
            y = targets[i, task]
            one = -math.log(p[i, task] if y else 1 - p[i, task])
            losses.append(one if TASKS[task].is_probability else (float(outputs.value[i, task].detach()) - y) ** 2)
        assert report.losses[task].item() == pytest.approx(np.mean(losses), rel=1e-4)
        assert report.rows[task] == len(losses)
        total += WEIGHTS[task] * float(np.mean(losses))
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_label_outside_its_space_may_be_anything() -> None:
    labels, known, weights = rows(50)
    labels[labels[:, 0] == 0, 5] = math.inf  # watched nothing of length nothing
    logits = torch.randn(50, 5, requires_grad=True)
    batch = labeled(spaces_of(True), labels, known, weights)
    loss, report = MultiTaskLoss(TASKS, WEIGHTS)(outputs_of(logits), *loss_parts(batch))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(report.local_sums).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_an_empty_space_contributes_zero_and_a_gradient_of_zero() -> None:
    head = Independent(list("abcde"), PARENTS, 4)
    labels, known, weights = rows(20)
    labels[:, 0] = 0  # nobody clicked: buy, review and ratio have no rows
    batch = labeled(spaces_of(True), labels, known, weights)
    loss, report = MultiTaskLoss(TASKS, WEIGHTS)(head(torch.randn(20, 5, 4)), *loss_parts(batch))
    loss.backward()
    assert report.losses[[1, 2, 4]].tolist() == [0, 0, 0]
    gradients = [parameter.grad for parameter in head.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    weight = head.towers.logits.weight.grad
    assert weight is not None
    assert weight[1].abs().sum() == 0
    assert weight[0].abs().sum() > 0


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_extreme_logits_have_finite_losses_and_gradients(logit: float) -> None:
    logits = torch.full((8, 2), logit, requires_grad=True)
    head = ESMM(["a", "b"], [None, 0], 1)
    head.towers = torch.nn.Flatten()  # type: ignore[assignment]
    labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).repeat(2, 1)
    labels[:, 1] *= labels[:, 0]
    value, _ = MultiTaskLoss([Binary(), Binary()], [1.0, 1.0])(head(logits), *loss_parts(batch_of(labels)))
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def uneven_gradients() -> tuple[list[float], float, list[float]]:
    """On a rank of four: gradients averaged as DDP does, with spaces from 0 to 200 rows."""
    with process_group("cpu", 60) as ranks:
        weight, x, (labels, known, weights) = uneven_data()
        first, last = [(0, 3), (3, 10), (10, 200), (200, 203)][ranks.rank]
        part = slice(first, last)
        batch = labeled(spaces_of(True), labels[part], known[part], weights[part])
        loss, report = MultiTaskLoss(TASKS, WEIGHTS)(outputs_of(x[part] @ weight), *loss_parts(batch))
        loss.backward()
        assert weight.grad is not None
        dist.all_reduce(weight.grad)
        dist.all_reduce(total := loss.detach())
        return (weight.grad / 4).flatten().tolist(), total.item() / 4, report.losses.tolist()


def uneven_data() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(203, 6, dtype=torch.float64)
    labels, known, weights = rows(203, seed=2)
    return weight, x, (labels.double(), known.double(), weights.double())


def outputs_of(logits: torch.Tensor) -> HeadOutput:
    log_p, log_not_p = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return HeadOutput(logits, log_p, log_not_p, log_p)


@pytest.mark.distributed
def test_four_uneven_ranks_give_the_gradients_of_one_process() -> None:
    weight, x, (labels, known, weights) = uneven_data()
    batch = labeled(spaces_of(True), labels, known, weights)
    loss, report = MultiTaskLoss(TASKS, WEIGHTS)(outputs_of(x @ weight), *loss_parts(batch))
    loss.backward()
    assert weight.grad is not None
    for gradient, value, losses in run_ranks(4, uneven_gradients):
        np.testing.assert_allclose(gradient, weight.grad.flatten(), rtol=0, atol=1e-6)
        assert value == pytest.approx(loss.item(), abs=1e-6)
        np.testing.assert_allclose(losses, report.losses, atol=1e-6)


def test_decay_matches_the_paper() -> None:
    initial, rate = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])
    assert decayed_weights(initial, rate, 0).tolist() == [1.0, 2.0]
    assert decayed_weights(initial, rate, 3).tolist() == [0.125, 2.0]
