"""The accumulated metrics against scikit-learn on all rows at once, and against torchrec.metrics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn.functional import logsigmoid
from torchrec.metrics.auc import _compute_auc_helper
from torchrec.metrics.calibration import compute_calibration
from torchrec.metrics.ne import compute_cross_entropy, compute_ne

from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.distributed.process_group import process_group
from mtlrec.evaluation.task_metrics import TaskMetrics
from mtlrec.heads import ESMM, Independent
from mtlrec.losses import Binary, MultiTaskLoss, Regression, TaskLosses
from mtlrec.metrics.binary import AUC, BinarySums
from mtlrec.metrics.metric import TaskRows
from mtlrec.models.train_module import StepOutput
from tests.support.labels import labeled, loss_parts
from tests.support.ranks import run_ranks

TASKS = ["click", "buy", "ratio"]
LOSSES = TaskLosses([Binary(), Binary(), Regression()])
CONDITIONS = [None, None, ("holds", ("task", 0))]
SPACES = SampleSpaces([0, 1, 2], [None, 0, None], CONDITIONS, False, [None] * 3, [True, True, False])


def steps(count: int, batch: int = 50) -> list[StepOutput]:
    torch.manual_seed(0)
    head, loss = ESMM(TASKS, [None, 0, None], 4), MultiTaskLoss(list(LOSSES), [1.0, 1.0, 1.0])
    made = []
    for _ in range(count):
        x = torch.randn(batch, 3, 4) * 2
        outputs = head(x)
        labels = (torch.rand(batch, 3) < outputs.value.sigmoid() * 0.8).float()
        labels[:, 2] = torch.rand(batch)
        weights = (torch.rand(batch) > 0.1).float()
        one = labeled(SPACES, labels, mask=weights)
        _, report = loss(outputs, *loss_parts(one))
        made.append(StepOutput(outputs.detach(), report, one))
    return made


def metrics_of(made: list[StepOutput]) -> Any:
    metrics = TaskMetrics(TASKS, LOSSES, [False, True, False], torch.device("cpu"))
    for step in made:
        metrics.update(step)
    return metrics.compute()


def test_metrics_match_sklearn_over_the_task_s_own_rows() -> None:
    made = steps(20)
    got = metrics_of(made)
    for task, name in enumerate(TASKS):
        inside = torch.cat([s.batch.in_space[:, task] for s in made]).bool()
        y = torch.cat([s.batch.targets[:, task] for s in made])[inside].numpy()
        assert got[name]["rows"] == inside.sum()
        if name == "ratio":
            value = torch.cat([s.outputs.value[:, task] for s in made])[inside].numpy()
            assert got[name]["mse"] == pytest.approx(((value - y) ** 2).mean(), rel=1e-5)
            assert got[name]["mae"] == pytest.approx(np.abs(value - y).mean(), rel=1e-5)
            continue
        p = torch.cat([s.outputs.log_p[:, task] for s in made])[inside].exp().double().numpy()
        base = y.mean()
        entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
        assert got[name]["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-4)
        assert got[name]["log_loss"] == pytest.approx(log_loss(y, p), rel=1e-4)
        assert got[name]["ne"] == pytest.approx(log_loss(y, p) / entropy, rel=1e-4)
        assert got[name]["calibration"] == pytest.approx(p.sum() / y.sum(), rel=1e-4)
        assert got[name]["positives"] == y.sum()
    assert got["buy"]["entire_auc"] == pytest.approx(got["buy"]["auc"], abs=1e-4)  # ESMM's own space is the entire one
    assert got["buy"]["inconsistent_labels"] > 0


def test_weights_count_and_the_entire_space_is_not_the_own_one() -> None:
    """Conditional towers: AUC where the parent is 1, and of the product over all rows; by the rows' weights."""
    torch.manual_seed(0)
    spaces = SampleSpaces([0, 1], [None, 0], [None, None], True, [2, None], [True, True])
    head, loss = Independent(["click", "buy"], [None, 0], 4), MultiTaskLoss([Binary()] * 2, [1.0, 1.0])
    outputs = head(torch.randn(3000, 2, 4) * 2).detach()
    labels = (torch.rand(3000, 3) < 0.4).float()
    labels[:, 2] = torch.rand(3000) * 3
    rows = labeled(spaces, labels)
    _, report = loss(outputs, *loss_parts(rows))
    metrics = TaskMetrics(["click", "buy"], TaskLosses([Binary()] * 2), [False, True], torch.device("cpu"))
    metrics.update(StepOutput(outputs, report, rows))
    got = metrics.compute()
    click, buy, weight = labels[:, 0].numpy(), (labels[:, 0] * labels[:, 1]).numpy(), labels[:, 2].numpy()
    p = outputs.value.sigmoid().numpy()
    assert got["click"]["auc"] == pytest.approx(roc_auc_score(click, p[:, 0], sample_weight=weight), abs=1e-4)
    assert got["click"]["log_loss"] == pytest.approx(log_loss(click, p[:, 0], sample_weight=weight), rel=1e-4)
    assert got["click"]["calibration"] == pytest.approx((weight * p[:, 0]).sum() / (weight * click).sum(), rel=1e-4)
    assert (got["click"]["rows"], got["click"]["positives"]) == (3000, click.sum())
    clicked = click == 1
    assert got["buy"]["rows"] == clicked.sum()
    assert got["buy"]["auc"] == pytest.approx(roc_auc_score(buy[clicked], p[clicked, 1]), abs=1e-4)
    product = p[:, 0].astype(np.float64) * p[:, 1]
    assert got["buy"]["entire_auc"] == pytest.approx(roc_auc_score(buy, product), abs=1e-4)
    assert got["buy"]["entire_calibration"] == pytest.approx(product.sum() / buy.sum(), rel=1e-4)
    base = buy.mean()
    entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
    assert got["buy"]["entire_ne"] == pytest.approx(log_loss(buy, product) / entropy, rel=1e-4)


def test_metrics_match_torchrec() -> None:
    made = steps(5)
    got = metrics_of(made)["click"]
    p = torch.cat([s.outputs.log_p[:, 0] for s in made]).exp().double()
    y = torch.cat([s.batch.targets[:, 0] for s in made]).double()
    w = torch.cat([s.batch.sample_weights[:, 0] for s in made]).double()
    cross_entropy = compute_cross_entropy(y, p, w, 1e-12).sum()
    positives, negatives = (w * y).sum(), (w * (1 - y)).sum()
    assert got["ne"] == pytest.approx(compute_ne(cross_entropy, w.sum(), positives, negatives, 1e-12).item(), rel=1e-5)
    assert got["calibration"] == pytest.approx(compute_calibration((w * p).sum(), positives).item(), rel=1e-5)
    auc = _compute_auc_helper(p, y, w)
    assert got["auc"] == pytest.approx(auc.item(), abs=1e-3)


def test_what_cannot_be_computed_is_nan() -> None:
    got = metrics_of([])
    assert math.isnan(got["click"]["auc"])
    assert math.isnan(got["click"]["ne"])
    assert math.isnan(got["ratio"]["mse"])
    assert got["click"]["rows"] == 0


def metrics_on_a_rank(made: list[StepOutput]) -> Any:
    with process_group("cpu", 60) as ranks:
        return metrics_of(made[:3] if ranks.rank == 0 else made[3:])


@pytest.mark.distributed
def test_ranks_add_up() -> None:
    made = steps(20)
    alone = metrics_of(made)
    for together in run_ranks(2, metrics_on_a_rank, made):
        for task in TASKS:
            assert together[task] == pytest.approx(alone[task], rel=1e-12)


def test_equal_scores_count_one_half() -> None:
    """As in scikit-learn's AUC: many rows have one of few scores, as before training."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (500,), generator=generator).float()
    labels = (torch.rand(500, generator=generator) < logits.sigmoid()).float()
    for scores in (logits, torch.zeros(500)):
        sums = BinarySums(torch.device("cpu"))
        sums.update(TaskRows(labels, torch.ones(500), scores.sigmoid(), logsigmoid(scores), logsigmoid(-scores)))
        assert AUC.value(sums) == pytest.approx(roc_auc_score(labels, scores))
