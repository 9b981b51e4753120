"""Rankings against scikit-learn's NDCG and a loop over users; the search finds what was planted."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import ndcg_score
from torch.nn.functional import logsigmoid

from mtlrec.batch import NO_GROUP
from mtlrec.errors import CheckpointError, NonFiniteError
from mtlrec.evaluation.fused_score import FusedScore, exponents_of, named, relevance_of, search
from mtlrec.evaluation.ranking import PerUser, RankedRows, RankMetric
from mtlrec.evaluation.ranking_report import mean_of
from mtlrec.heads import HeadOutput
from mtlrec.losses import LossReport
from mtlrec.models.build import build_task_losses
from mtlrec.models.train_module import StepOutput
from tests.support.labels import batch_of
from tests.support.toy import toy_job, toy_tree


def rows(seed: int, users: int = 40, most: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    groups = np.repeat(generator.permutation(users) * 7 - 50, generator.integers(1, most, users))
    groups = generator.permutation(groups)
    return groups, generator.integers(0, 3, len(groups)).astype(np.float32), generator.normal(size=len(groups))


@pytest.mark.parametrize("k", [1, 3, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_they_are_scikit_learns_ndcg_and_a_loops_hit_rate(seed: int, k: int) -> None:
    groups, worth, scores = rows(seed)
    ndcgs, hits = [], []
    for user in np.unique(groups):
        mine = groups == user
        if np.ptp(worth[mine]) > 0:
            ndcgs.append(ndcg_score([worth[mine]], [scores[mine]], k=k))
            first = worth[mine][np.argsort(-scores[mine])][:k]
            hits.append(float((first > 0).any()))
    found = PerUser.of(groups, worth)
    assert found.users == len(ndcgs)
    np.testing.assert_allclose(found.measure(RankMetric("ndcg", k), scores[found.rows]), ndcgs)
    np.testing.assert_array_equal(found.measure(RankMetric("hit_rate", k), scores[found.rows]), hits)


@given(arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 4)))
def test_users_without_an_order_to_get_wrong_are_left_out(groups: np.ndarray) -> None:
    worth = (np.arange(len(groups)) % 2).astype(np.float32)
    found = PerUser.of(groups, worth)
    expected = [user for user in np.unique(groups) if len(set(worth[groups == user])) == 2]
    assert found.users == len(expected)
    assert sorted(groups[found.rows]) == sorted(g for g in groups if g in expected)
    assert list(found.worth) == list(worth[found.rows])


def test_equal_scores_gain_nothing_by_the_order_of_the_rows() -> None:
    """Positives first in the files, a score that says nothing: as good as chance, 1 of 10 in the first place."""
    groups, worth = np.repeat(np.arange(2000), 10), np.tile(np.arange(10) == 0, 2000).astype(np.float32)
    users = PerUser.of(groups, worth)
    assert users.measure(RankMetric("hit_rate", 1), np.zeros(20_000)).mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("most", [1, 50, 10_000])
def test_a_sample_is_of_whole_users(most: int) -> None:
    groups, worth, scores = rows(3)
    users = PerUser.of(groups, worth)
    wanted = users.sample(most, seed=1)
    some = users.only(wanted)
    assert some.users == wanted.sum() >= 1
    assert len(some.rows) <= most or some.users == 1
    assert wanted.all() == (most == 10_000)
    whole = users.measure(RankMetric("ndcg", 5), scores[users.rows])
    np.testing.assert_allclose(some.measure(RankMetric("ndcg", 5), scores[some.rows]), whole[wanted])


def test_a_search_may_look_at_fewer_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first by number has more rows than a search looks at, and says nothing."""
    generator = np.random.default_rng(0)
    groups = np.concatenate([np.zeros(5000, np.int64), np.repeat(np.arange(1, 200), 20)])
    logs = generator.normal(size=(len(groups), 2))
    worth = np.exp(logs[:, 1]).astype(np.float32)
    monkeypatch.setattr("mtlrec.evaluation.fused_score.MOST_ROWS", 2000)
    users = PerUser.of(groups, worth)
    found = search(users, logs[users.rows], RankMetric("ndcg", 10), seed=0)
    np.testing.assert_allclose(found, [0, 1], atol=0.05)


def test_a_search_finds_the_powers_that_order_best() -> None:
    """Worth is by log p1 + 3 log p3 alone: of five tasks two matter, three times as much the second; the last has the
    same score for all."""
    generator = np.random.default_rng(0)
    groups, logs = np.repeat(np.arange(300), 20), generator.normal(size=(6000, 5))
    logs[:, 4] = -1.0
    worth = np.exp(logs[:, 0] + 3 * logs[:, 2]).astype(np.float32)
    users = PerUser.of(groups, worth)
    metric = RankMetric("ndcg", 10)
    found = search(users, logs[users.rows], metric, seed=0)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, [0.25, 0, 0.75, 0, 0], atol=0.03)
    assert found[4] == 0, "what the metric does not miss"

    def measure(powers: np.ndarray) -> float:
        return float(users.measure(metric, logs[users.rows] @ powers).mean())

    assert measure(found) > measure(np.array([0.25, 0, 0.75, 0, 0])) - 5e-4
    assert measure(found) > max(measure(alone) for alone in np.eye(5)) + 0.02
    np.testing.assert_array_equal(found, search(users, logs[users.rows], metric, seed=0))


def test_the_score_is_the_product_of_powers(tmp_path: Path) -> None:
    tree = toy_tree()
    tree["tasks"][3] = {"name": "watch", "kind": "watch_time", "label": "watch_s", "space": "click"}
    job = toy_job(tasks=tree["tasks"])
    logits = torch.randn(7, 4, dtype=torch.float64)
    entire = torch.nn.functional.logsigmoid(logits)
    outputs = HeadOutput(logits, entire, entire, entire)
    losses = build_task_losses(job)
    values = losses.predictions(outputs)
    score = FusedScore(exponents={"like": 2.0, "watch": 0.5, "buy": 0.0, "click": -1.0})
    expected = values[:, 2] ** 2 * values[:, 3] ** 0.5 / values[:, 0]
    torch.testing.assert_close(score.of(outputs, job, losses), expected)
    assert score.of(outputs, job, losses).dtype == torch.float64
    assert str(score) == "like^2 x watch^0.5 x click^-1"
    small = FusedScore(exponents={"like": 100.0}).of(outputs, job, losses)
    assert (small > 0).all(), "orders by what float32 has no numbers for"
    with pytest.raises(
        NonFiniteError, match="fused_score: like\\^-100000 is too large a number; take smaller exponents"
    ):
        FusedScore(exponents={"like": -1e5}).of(outputs, job, losses)
    assert FusedScore.read(tmp_path, job) is None
    score.write(tmp_path)
    assert FusedScore.read(tmp_path, job) == score
    with pytest.raises(
        CheckpointError, match=r"fused_score\.json: no exponents of a score \(the job has no task watch whose"
    ):
        FusedScore.read(tmp_path, toy_job())
    for text in ("{", '{"exponents": {}}', '{"exponents": {"click": 0}}', '{"exponents": {"click": 1}, "more": 1}'):
        (tmp_path / "fused_score.json").write_text(text)
        with pytest.raises(CheckpointError, match="no exponents of a score"):
            FusedScore.read(tmp_path, job)


def test_powers_and_worths_are_read() -> None:
    job = toy_job()
    assert exponents_of("click=1, buy=-0.5,", job) == {"click": 1.0, "buy": -0.5}
    assert relevance_of("click,like=2", job) == {"click": 1.0, "like": 2.0}
    assert named(np.array([0.123456, 1.0]), ["click", "buy"]) == {"click": 0.1235, "buy": 1.0}
    assert RankMetric.parse("hit_rate@5") == RankMetric("hit_rate", 5)
    assert str(RankMetric.parse("ndcg@10")) == "ndcg@10"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda job: exponents_of("click", job), "--exponents click: TASK=NUMBER, as in click=0.5"),
        (lambda job: exponents_of("click=x", job), "--exponents click=x: TASK=NUMBER"),
        (lambda job: exponents_of("click=inf", job), "--exponents click=inf: TASK=NUMBER"),
        (
            lambda job: exponents_of("clik=1", job),
            "--exponents clik=1: no such task; tasks are click, buy, like, ratio",
        ),
        (lambda job: exponents_of("ratio=1", job), "--exponents ratio=1: ratio is a regression"),
        (lambda job: exponents_of("click=1,click=2", job), "--exponents click=2: click is named twice"),
        (lambda job: exponents_of("click=0", job), "--exponents click=0: names no task with a number other than 0"),
        (lambda job: exponents_of(",", job), "--exponents ,: names no task"),
        (lambda job: relevance_of("click=-1", job), "--relevance click=-1: what an impression is worth"),
        (lambda job: relevance_of("click=", job), "--relevance click=: TASK=NUMBER"),
        (lambda job: RankMetric.parse("ndcg"), "--rank-metric ndcg: ndcg@K or hit_rate@K"),
        (lambda job: RankMetric.parse("ndcg@0"), "--rank-metric ndcg@0"),
        (lambda job: RankMetric.parse("mrr@5"), "--rank-metric mrr@5"),
    ],
)
def test_what_cannot_be_read_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(toy_job())  # type: ignore[operator]


def test_an_interval_over_users() -> None:
    mean, half_width = mean_of(np.array([0.0, 1.0, 0.5]))
    assert (mean, half_width) == (0.5, pytest.approx(1.96 * 0.5 / np.sqrt(3)))
    assert mean_of(np.array([0.7])) == (0.7, np.inf), "one user tells nothing of others"


def test_no_power_is_negative() -> None:
    """Though a task whose score falls with the worth would order better with one."""
    generator = np.random.default_rng(0)
    groups, logs = np.repeat(np.arange(200), 10), generator.normal(size=(2000, 3))
    worth = np.exp(logs[:, 1] - 2 * logs[:, 0]).astype(np.float32)
    users = PerUser.of(groups, worth)
    found = search(users, logs[users.rows], RankMetric("ndcg", 5), seed=0)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, [0, 1, 0], atol=0.03)


def test_rows_of_nobody_are_not_ranked() -> None:
    """Two users of two rows each, and three rows whose user is unknown."""
    groups = torch.tensor([1, NO_GROUP, 2, 1, NO_GROUP, 2, NO_GROUP])
    logits = torch.randn(7, 1, generator=torch.Generator().manual_seed(0))
    targets, zeros = torch.tensor([[1.0], [1], [0], [0], [0], [1], [1]]), torch.zeros(1)
    report = LossReport(zeros, zeros, zeros, zeros)
    outputs = HeadOutput(logits, logsigmoid(logits), logsigmoid(-logits), logsigmoid(logits))
    job = toy_job(tasks=toy_tree()["tasks"][:1])
    ranked = RankedRows(job, ["click"], {"click": 1.0})
    ranked.update(StepOutput(outputs, report, batch_of(targets, group_ids=groups)))
    users, logs = ranked.compute()
    assert users.users == 2
    assert sorted(logs[:, 0]) == pytest.approx(sorted(logsigmoid(logits)[groups != NO_GROUP, 0].tolist()))
