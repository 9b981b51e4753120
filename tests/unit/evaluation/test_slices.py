"""Columns cut into slices, and the AUC within them against scikit-learn's."""

import datetime
import decimal
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mtlrec.evaluation.slices import SliceRows, may_be_sliced, sliced
from mtlrec.heads import HeadOutput
from mtlrec.losses.multitask import LossReport
from mtlrec.metrics.grouped_auc import auc_of_groups
from mtlrec.models.train_module import StepOutput
from tests.support.labels import batch_of
from tests.support.toy import toy_job


def test_few_values_are_slices_of_their_own() -> None:
    codes, names = sliced(pa.array([3, 1, None, 1, 10], pa.int32()))
    assert names == ["1", "3", "10", "null"]
    assert codes.tolist() == [1, 0, 3, 0, 2]
    codes, names = sliced(pa.array(["b", "a", "b", None]))
    assert (codes.tolist(), names) == ([0, 1, 0, 2], ["b", "a", "null"])
    codes, names = sliced(pa.array([True, False, True]))
    assert (codes.tolist(), names) == ([0, 1, 0], ["true", "false"])
    codes, names = sliced(pa.array([datetime.date(2026, 1, 2)] * 2))
    assert (codes.tolist(), names) == ([0, 0], ["2026-01-02"])


def test_many_numbers_are_cut_into_parts_of_as_many_rows() -> None:
    values = np.random.default_rng(0).permutation(np.arange(100.0))
    codes, names = sliced(pa.array([*values, float("nan")]))
    assert names == ["0 to 19", "20 to 39", "40 to 59", "60 to 79", "80 to 99", "null"]
    assert np.bincount(codes).tolist() == [20, 20, 20, 20, 20, 1]
    assert (codes[:-1] == values // 20).all()


def test_a_number_of_many_rows_is_a_part_by_itself() -> None:
    """As counts are, mostly 0."""
    codes, names = sliced(pa.array([0] * 85 + [*range(1, 16)]))
    assert names == ["0", "1 to 4", "5 to 7", "8 to 11", "12 to 15"]
    assert np.bincount(codes).tolist() == [85, 4, 3, 4, 4]
    codes, names = sliced(pa.array([7] * 50 + [*range(20)], pa.int16()))
    assert names == ["0 to 4", "5 to 6", "7", "8 to 9", "10 to 14", "15 to 19"]
    assert np.bincount(codes)[2] == 51


def test_large_and_close_numbers_keep_their_digits() -> None:
    start = 1_650_000_000_000
    codes, names = sliced(pa.array(np.arange(start, start + 100)))
    assert names[0] == "1650000000000 to 1650000000019"
    assert len(set(names)) == 5 == codes.max() + 1
    _, names = sliced(pa.array(1 + np.arange(100) * 1e-8))
    assert len(set(names)) == 5
    codes, names = sliced(pa.array(2**62 + np.arange(20)))
    assert names[-1] == f"{2**62 + 16} to {2**62 + 19}"
    codes, names = sliced(pa.array([math.inf, -math.inf, 1.0, math.nan]))
    assert (codes.tolist(), names) == ([1, 1, 0, 1], ["1", "null"])
    _, names = sliced(pa.array(["x" * 5000]))
    assert names == ["x" * 40 + "..."]
    _, names = sliced(pa.array([decimal.Decimal(f"{n}.5") for n in range(100)]))
    assert names[0] == "0.5 to 19.5"


def test_many_days_and_times_are_cut_too() -> None:
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(days=n) for n in range(100)]
    _, names = sliced(pa.array(days))
    assert names[0] == "2026-01-01 to 2026-01-20"
    codes, names = sliced(pa.array([datetime.datetime(2026, 1, 1, n % 24, n // 24) for n in range(100)]))
    assert names[0].startswith("2026-01-01 00:00:00")
    assert np.bincount(codes).tolist() == [20] * 5


def test_of_many_words_the_rarest_are_put_together() -> None:
    words = [f"w{index}" for index in range(20) for _ in range(20 - index)]
    codes, names = sliced(pa.array(words))
    assert names == [*(f"w{index}" for index in range(11)), "(9 others)"]
    assert np.bincount(codes).tolist() == [*range(20, 9, -1), sum(range(1, 10))]


def test_auc_of_groups_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    groups, targets = rng.integers(-3, 4, 500), (rng.random(500) < 0.4).astype(np.float32)
    scores = (targets + rng.normal(size=500).round(1)).astype(np.float32)
    targets[groups == 2] = 1
    found = auc_of_groups(groups, scores, targets)
    assert found.ids.tolist() == list(range(-3, 4))
    for group, auc, rows, positives in zip(*found, strict=True):
        mine = groups == group
        assert (rows, positives) == (mine.sum(), targets[mine].sum())
        if group == 2:
            assert np.isnan(auc)
        else:
            assert auc == pytest.approx(roc_auc_score(targets[mine], scores[mine]))


def step(logits: torch.Tensor, targets: torch.Tensor, space: torch.Tensor) -> StepOutput:
    tasks = logits.shape[1]
    log_p, log_not_p = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    zeros = torch.zeros(tasks)
    report = LossReport(zeros, zeros, zeros, zeros)
    return StepOutput(HeadOutput(logits, log_p, log_not_p, log_p), report, batch_of(targets, space))


def test_a_task_is_judged_over_its_own_space_and_padding_counts_nowhere() -> None:
    """click, buy, like and ratio, the last a regression; two batches, the second with two rows that fill it up."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4, generator=generator)
    targets = (torch.rand(40, 4, generator=generator) < 0.5).float()
    space = (torch.rand(40, 4, generator=generator) < 0.7).float()
    hours = pa.chunked_array([pa.array(np.arange(38) % 2)])
    rows = SliceRows("hour", toy_job())
    rows.add(hours.slice(0, 20), step(logits[:20], targets[:20], space[:20]))
    rows.add(hours.slice(20), step(logits[20:], targets[20:], space[20:]))
    found = rows.compute()
    assert (found.column, found.names, found.rows) == ("hour", ["0", "1"], [19, 19])
    assert found.tasks == ["click", "buy", "like"]
    for task in range(3):
        for hour in range(2):
            mine = (torch.arange(40) % 2 == hour) & (space[:, task] > 0) & (torch.arange(40) < 38)
            expected = roc_auc_score(targets[mine, task], logits[mine, task])
            assert found.auc[task][hour] == pytest.approx(expected)
            assert found.positives[task][hour] == targets[mine, task].sum()


def test_words_of_a_dictionary_are_words() -> None:
    logits = torch.zeros(2, 4)
    rows = SliceRows("city", toy_job())
    rows.add(pa.chunked_array([pa.array(["a", "b"]).dictionary_encode()]), step(logits, logits, logits + 1))
    rows.add(pa.chunked_array([pa.nulls(2)]), step(logits, logits, logits + 1))
    assert rows.compute().names == ["a", "b", "null"]


def test_rows_that_were_left_out_count_nowhere() -> None:
    logits = torch.zeros(3, 4)
    given = step(logits, logits, logits + 1)
    given.batch.sample_weights[1] = 0
    rows = SliceRows("city", toy_job())
    rows.add(pa.chunked_array([["a", "b", "a"]]), given)
    found = rows.compute()
    assert (found.names, found.rows) == (["a"], [2])


@pytest.mark.parametrize(
    ("kind", "fits"),
    [
        (pa.int8(), True),
        (pa.string(), True),
        (pa.date32(), True),
        (pa.bool_(), True),
        (pa.list_(pa.int8()), False),
        (pa.binary(), False),
        (pa.uuid(), False),
        (pa.dictionary(pa.int8(), pa.string()), True),
        (pa.struct([("a", pa.int8())]), False),
    ],
)
def test_what_has_values_to_tell_apart(kind: pa.DataType, fits: bool) -> None:
    assert may_be_sliced(kind) is fits
