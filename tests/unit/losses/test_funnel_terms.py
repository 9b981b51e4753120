"""ESCM2's and AITM's terms, the kinds of task and their options, against NumPy row by row."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.heads import AITM, ESCM2, DoublyRobustESCM2
from mtlrec.heads.funnel import HeadOutput
from mtlrec.losses import (
    Binary,
    MultiTaskLoss,
    Regression,
    TaskLosses,
    WatchTime,
)
from tests.support.labels import batch_of, labeled, loss_parts

PARENTS = [None, 0, 1]


def funnel_labels(rows: int) -> torch.Tensor:
    click = torch.rand(rows) < 0.5
    buy = click & (torch.rand(rows) < 0.5)
    return torch.stack([click, buy, buy & (torch.rand(rows) < 0.5)], 1).float()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", [ESCM2, DoublyRobustESCM2])
def test_escm2_matches_the_paper(kind: type[ESCM2]) -> None:
    torch.manual_seed(0)
    options = {"propensity_floor": 0.2, "conditional_weight": 0.7, "entire_weight": 0.3}
    head = kind(["click", "buy", "review"], PARENTS, 4, [6], **options).double()  # type: ignore[arg-type]
    fused, labels = torch.randn(80, 3, 4).double() * 3, funnel_labels(80).double()
    outputs = head(fused)
    loss = MultiTaskLoss([Binary()] * 3, [1.0] * 3, add_terms=head.add_terms)
    _, report = loss(outputs, *loss_parts(batch_of(labels)))
    y, conditional = labels.numpy(), sigmoid(outputs.value.detach().numpy())
    p = np.cumprod(conditional, axis=1)
    for task in range(3):
        entire = -(y[:, task] * np.log(p[:, task]) + (1 - y[:, task]) * np.log(1 - p[:, task])).mean()
        if task == 0:
            assert report.losses[0].item() == pytest.approx(entire, rel=1e-6)
            continue
        q = conditional[:, task]
        error = -(y[:, task] * np.log(q) + (1 - y[:, task]) * np.log(1 - q))
        observed, propensity = y[:, task - 1], np.maximum(p[:, task - 1], 0.2)
        if kind is DoublyRobustESCM2:
            imputed = outputs.imputed[:, task - 1].detach().numpy()  # type: ignore[index]
            assert (imputed >= 0).all()
            risk = (imputed + observed * (error - imputed) / propensity).mean()
            risk += (observed * (error - imputed) ** 2 / propensity).mean()
        else:
            risk = (observed * error / propensity).mean()
        assert report.losses[task].item() == pytest.approx(0.3 * entire + 0.7 * risk, rel=1e-5)


def test_the_propensity_takes_no_gradient() -> None:
    """With ESMM's part switched off the parent's tower learns from its own loss alone."""
    torch.manual_seed(0)
    head = ESCM2(["click", "buy"], [None, 0], 4, [6], entire_weight=0.0)
    labels = funnel_labels(40)[:, :2]
    loss = MultiTaskLoss([Binary()] * 2, [0.0, 1.0], add_terms=head.add_terms)
    total, _ = loss(head(torch.randn(40, 2, 4)), *loss_parts(batch_of(labels)))
    total.backward()
    click, buy = head.towers.logits.weight.grad  # type: ignore[misc]
    assert click.abs().sum() == 0
    assert buy.abs().sum() > 0


def test_the_imputation_error_teaches_the_imputation_tower_alone() -> None:
    """To the conditional tower the doubly robust risk is the inverse propensity one, whatever is imputed."""
    gradients = []
    for doubly_robust in (False, True):
        torch.manual_seed(0)
        head = DoublyRobustESCM2(["click", "buy"], [None, 0], 4, [6])
        fused, labels = torch.randn(40, 2, 4), funnel_labels(40)[:, :2]
        inverse_propensity = ESCM2(["click", "buy"], [None, 0], 4, [6])
        add_terms = head.add_terms if doubly_robust else inverse_propensity.add_terms
        loss = MultiTaskLoss([Binary()] * 2, [1.0, 1.0], add_terms=add_terms)
        loss(head(fused), *loss_parts(batch_of(labels)))[0].backward()
        gradients.append([p.grad.clone() for p in head.towers.parameters() if p.grad is not None])
        assert head.imputations is not None
        imputed = [p.grad for p in head.imputations.parameters()]
        assert all(g is not None and g.abs().sum() > 0 for g in imputed) == doubly_robust
    for plain, robust in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, robust)


def test_a_parent_s_row_weight_is_not_its_label() -> None:
    """A clicked row that does not count for click is still a clicked row to buy."""
    torch.manual_seed(0)
    head, fused = ESCM2(["click", "buy"], [None, 0], 4, [6]), torch.randn(40, 2, 4)
    labels = torch.cat([funnel_labels(40)[:, :2], (torch.arange(40) % 2).float()[:, None]], 1)
    losses = []
    for row_weights in ([None, None], [2, None]):
        spaces = SampleSpaces([0, 1], [None, 0], [None, None], False, row_weights, [True, True])
        loss = MultiTaskLoss([Binary()] * 2, [1.0, 1.0], add_terms=head.add_terms)
        losses.append(loss(head(fused), *loss_parts(labeled(spaces, labels)))[1].losses.tolist())
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] == losses[1][1]


def test_imputation_towers_are_for_training_and_for_children() -> None:
    head = DoublyRobustESCM2(["a", "b", "c"], [None, 0, None], 4, [6])
    imputed = head(torch.randn(5, 3, 4)).imputed
    assert imputed is not None
    assert imputed.shape == (5, 1)
    assert (imputed > 0).all()
    assert head.eval()(torch.randn(5, 3, 4)).imputed is None
    assert DoublyRobustESCM2(["a", "b"], [None, None], 4)(torch.randn(5, 2, 4)).imputed is None


def test_the_calibrator_asks_a_child_to_stay_below_its_parent() -> None:
    torch.manual_seed(0)
    head = AITM(["click", "buy", "review"], PARENTS, 4, [6], calibrator=0.6).double()
    labels, outputs = funnel_labels(50).double(), head(torch.randn(50, 3, 4).double() * 5)
    p = outputs.log_p.exp().detach().numpy()
    reports = [
        MultiTaskLoss([Binary()] * 3, [1.0] * 3, add_terms=add_terms)(outputs, *loss_parts(batch_of(labels)))[1]
        for add_terms in (None, head.add_terms)
    ]
    added = (reports[1].losses - reports[0].losses).numpy()
    expected = [0, *(0.6 * np.maximum(0, p[:, task] - p[:, task - 1]).mean() for task in (1, 2))]
    np.testing.assert_allclose(added, expected, rtol=1e-5, atol=1e-8)
    assert added[1] > 0


def of_watch_time(time: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
    return WatchTime().row_losses(HeadOutput(logit, logit, logit, logit), time)


@given(time=st.floats(0, 1e4), logit=st.floats(-100, 100))
def test_watch_time_loss_is_least_at_the_logarithm_of_the_time(time: float, logit: float) -> None:
    here, z = torch.tensor([time], dtype=torch.float64), torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    loss = of_watch_time(here, z)
    loss.sum().backward()
    p = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
    assert z.grad is not None
    assert z.grad.item() == pytest.approx((1 + time) * p - time, abs=1e-6 * (1 + time))
    if time > 0:
        assert loss.item() >= of_watch_time(here, here.log()).item() - 1e-9


def test_options_of_a_task_match_numpy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 4).double() * 2, (torch.rand(40, 6) < 0.5).double()
    labels[:, 2] = torch.randn(40) * 3
    labels[:, 3] = torch.rand(40) * 50
    labels[:, 4] = torch.rand(40) * 2  # of the first task's rows
    known = torch.ones_like(labels)
    known[:10, 4] = 0
    log_p = torch.nn.functional.logsigmoid
    outputs = HeadOutput(logits, log_p(logits), log_p(-logits), log_p(logits))
    condition = ("and", ("not", ("holds", ("column", 5))), (">", ("task", 3), 10.0))
    conditions, row_weights = [None, None, None, condition], [4, None, None, None]
    spaces = SampleSpaces([0, 1, 2, 3], [None] * 4, conditions, True, row_weights, [True, True, False, False])
    tasks = [
        Binary(pos_weight=3.0),
        Binary(label_smoothing=0.2),
        Regression("huber", huber_delta=0.5),
        WatchTime(),
    ]
    _, report = MultiTaskLoss(tasks, [1.0] * 4)(outputs, *loss_parts(labeled(spaces, labels * known, known)))
    y, z = labels.numpy(), logits.numpy()
    p = sigmoid(z)
    weight = np.where(np.arange(40) < 10, 0, y[:, 4])
    weighted = -(3 * y[:, 0] * np.log(p[:, 0]) + (1 - y[:, 0]) * np.log(1 - p[:, 0]))
    smooth = y[:, 1] * 0.8 + 0.1
    error = np.abs(z[:, 2] - y[:, 2])
    long = (y[:, 5] == 0) & (y[:, 3] > 10)
    watch = y[:, 3] * np.log1p(np.exp(-z[:, 3])) + np.log1p(np.exp(z[:, 3]))
    expected = [
        (weight * weighted).sum() / weight.sum(),
        -(smooth * np.log(p[:, 1]) + (1 - smooth) * np.log(1 - p[:, 1])).mean(),
        np.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25)).mean(),
        watch[long].mean(),
    ]
    np.testing.assert_allclose(report.losses, expected, rtol=1e-6)
    assert report.rows.tolist() == [30, 40, 40, long.sum()]
    predictions = TaskLosses(tasks).predictions(outputs)
    np.testing.assert_allclose(predictions, np.stack([p[:, 0], p[:, 1], z[:, 2], np.exp(z[:, 3])], 1))
