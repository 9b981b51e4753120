"""Calibration maps against scikit-learn, the calibration error against a loop, GAUC against a loop over groups."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn.functional import logsigmoid

from mtlrec.distributed.process_group import process_group
from mtlrec.errors import CheckpointError
from mtlrec.evaluation.calibration import Calibration, Map, fit
from mtlrec.evaluation.predict import calibrated
from mtlrec.heads.funnel import HeadOutput, ProbabilityChain
from mtlrec.metrics.binary import BINS, LOGIT_RANGE, BinarySums, bin_logits, calibration_error
from mtlrec.metrics.grouped_auc import GroupedAUC, GroupedRows, grouped_auc
from mtlrec.metrics.metric import TaskRows
from mtlrec.models.build import build_task_losses
from tests.support.ranks import run_ranks
from tests.support.toy import toy_job


def overconfident(rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits twice as large as they should be and shifted, and labels."""
    rng = np.random.default_rng(0)
    true = rng.normal(-1.0, 1.0, rows)
    return 2 * true + 0.5, (rng.random(rows) < 1 / (1 + np.exp(-true))).astype(np.float64)


def sums_of(logits: np.ndarray, labels: np.ndarray, weight: float = 1.0) -> BinarySums:
    sums, z, log = BinarySums(torch.device("cpu")), torch.from_numpy(logits), torch.nn.functional.logsigmoid
    weights = torch.full((len(z),), weight)
    sums.update(TaskRows(torch.from_numpy(labels), weights, z.sigmoid(), log(z), log(-z)))
    return sums


def histogram(logits: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    return sums_of(logits, labels).histogram


def test_platt_is_a_logistic_regression_on_the_logit() -> None:
    logits, labels = overconfident()
    fitted = fit("platt", histogram(logits, labels))
    assert fitted is not None
    reference = LogisticRegression(C=1e12, tol=1e-10).fit(logits[:, None], labels)
    assert fitted.slope == pytest.approx(reference.coef_[0, 0], abs=2e-3)
    assert fitted.offset == pytest.approx(reference.intercept_[0], abs=2e-3)
    assert fitted.slope == pytest.approx(0.5, abs=0.02)


def test_isotonic_is_scikit_learn_s() -> None:
    logits, labels = overconfident(5000)
    logits = np.round(logits, 1) + 1e-5  # ties, each within a bin
    fitted = fit("isotonic", histogram(logits, labels))
    assert fitted is not None
    reference = IsotonicRegression(out_of_bounds="clip").fit(logits, labels)
    asked = np.unique(logits)
    ours = fitted(torch.from_numpy(asked)).numpy()
    np.testing.assert_allclose(ours, reference.predict(asked).clip(1e-7, 1 - 1e-7), atol=5e-3)
    assert (np.diff(ours) >= 0).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_fitted_map_mends_the_calibration_error(method: str) -> None:
    logits, labels = overconfident()
    half = len(logits) // 2
    fitted, held_out = fit(method, histogram(logits[:half], labels[:half])), histogram(logits[half:], labels[half:])  # type: ignore[arg-type]
    assert fitted is not None
    assert calibration_error(held_out, fitted) < 0.3 * calibration_error(held_out)


def test_one_class_fits_nothing() -> None:
    assert fit("platt", histogram(np.zeros(3), np.ones(3))) is None
    assert math.isnan(calibration_error(torch.zeros(2, BINS)))


def test_the_calibration_error_of_a_loop() -> None:
    logits, labels = overconfident(4000)
    counts = histogram(logits, labels)
    order = np.argsort(logits)
    p = 1 / (1 + np.exp(-logits[order].clip(-LOGIT_RANGE, LOGIT_RANGE)))
    gaps = [abs(part.sum()) for part in np.array_split(p - labels[order], 20)]
    assert calibration_error(counts) == pytest.approx(sum(gaps) / len(logits), abs=1e-3)
    assert bin_logits(counts.device)[[0, -1]].tolist() == pytest.approx([-LOGIT_RANGE, LOGIT_RANGE], abs=1e-3)


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    written = Calibration(
        method="isotonic", rows=10, maps={"click": Map(logits=[-1.0, 1.0], probabilities=[0.25, 0.75])}
    )
    assert Calibration.read(tmp_path) is None
    written.write(tmp_path)
    read = Calibration.read(tmp_path)
    assert read == written
    assert read.of("click")(torch.tensor([-9.0, 0.0, 9.0])).tolist() == [0.25, 0.5, 0.75]
    assert read.of("buy")(torch.zeros(1)).item() == 0.5


def test_small_row_weights_fit_as_rows_do() -> None:
    logits, labels = overconfident(5000)
    light = fit("platt", sums_of(logits, labels, weight=1e-4).histogram_of_rows())
    rows = fit("platt", histogram(logits, labels))
    assert light is not None
    assert rows is not None
    assert (light.slope, light.offset) == pytest.approx((rows.slope, rows.offset), abs=1e-5)


def test_platt_of_separable_rows_is_finite() -> None:
    fitted = fit("platt", histogram(np.linspace(-3, 3, 50), (np.arange(50) == 49).astype(np.float64)))
    assert fitted is not None
    assert 0 < fitted.slope < 100
    assert 0 < fitted(torch.tensor([16.0])).item() <= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"method": "platt", "rows": 1, "maps": {"click": {"slope": null}}}',
        '{"method": "isotonic", "rows": 1, "maps": {"click": {"logits": [1, 2], "probabilities": [0.5]}}}',
        '{"method": "isotonic", "rows": 1, "maps": {"click": {"logits": [2, 1], "probabilities": [0.5, 0.6]}}}',
        '{"method": "platt", "rows": 1, "maps": {"click": {"exec": 1}}}',
    ],
)
def test_a_file_that_is_no_calibration_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"calibration\.json: not a calibration"):
        Calibration.read(tmp_path)


def scores(rows: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    groups = rng.integers(-5, 200, rows) ** 3
    values = np.round(rng.normal(size=rows), 1).astype(np.float32)  # many ties
    return groups, values, (rng.random(rows) < 0.3).astype(np.float32)


def test_grouped_auc_of_a_loop() -> None:
    groups, values, labels = scores()
    each = []
    for group in np.unique(groups):
        mine = groups == group
        if 0 < labels[mine].sum() < mine.sum():
            each.append((roc_auc_score(labels[mine], values[mine]), mine.sum()))
    assert len(each) < len(np.unique(groups))
    aucs, rows = zip(*each, strict=True)
    assert grouped_auc(groups, values, labels) == pytest.approx(np.average(aucs, weights=rows))
    assert math.isnan(grouped_auc(groups[:0], values[:0], labels[:0]))
    assert math.isnan(grouped_auc(np.arange(5), values[:5], labels[:5]))
    assert math.isnan(GroupedAUC.value(GroupedRows(torch.device("cpu")).over_ranks()))


def grouped_on_a_rank() -> float:
    with process_group("cpu", 60) as ranks:
        sums, cut = GroupedRows(torch.device("cpu")), [0, 17, 3000]
        part = slice(cut[ranks.rank], cut[ranks.rank + 1])
        groups, values, labels = (torch.from_numpy(column[part]) for column in scores())
        zeros = torch.zeros(len(groups))
        sums.update(TaskRows(labels, torch.ones(len(groups)), zeros, values, zeros, groups))
        padding = slice(0, 5)
        sums.update(TaskRows(1 - labels[padding], zeros[:5], zeros[:5], values[padding], zeros[:5], groups[padding]))
        return GroupedAUC.value(sums.over_ranks())


@pytest.mark.distributed
def test_a_group_on_two_ranks_is_one_group() -> None:
    for together in run_ranks(2, grouped_on_a_rank):
        assert together == pytest.approx(grouped_auc(*scores()))


def test_json_is_what_is_stored(tmp_path: Path) -> None:
    Calibration(method="platt", rows=3, maps={"click": Map(slope=0.5, offset=0.1)}).write(tmp_path)
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert stored["maps"]["click"]["slope"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_what_is_mapped_is_the_probability_over_all_impressions() -> None:
    """Under independent towers, whose own probabilities are conditional on the parent."""
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    log_p, log_not_p = logsigmoid(logits), logsigmoid(-logits)
    entire, _ = ProbabilityChain([None, 0, None, None])(logits)
    outputs = HeadOutput(logits, log_p, log_not_p, entire)
    calibration = Calibration(method="platt", rows=30, maps={"buy": Map(slope=2.0, offset=0.5)})
    found = calibrated(outputs, toy_job(), build_task_losses(toy_job()), calibration)
    p = logits[:, 0].sigmoid() * logits[:, 1].sigmoid()
    torch.testing.assert_close(found[:, 1], torch.sigmoid(2 * torch.logit(p) + 0.5), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[:, 0], logits[:, 0].sigmoid())
    torch.testing.assert_close(found[:, 3], logits[:, 3])
