"""XAUC against a loop over all pairs of rows."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlrec.distributed.process_group import process_group
from mtlrec.metrics.metric import TaskRows
from mtlrec.metrics.xauc import XAUC, GroupedXAUC, OrderedRows, concordance
from tests.support.ranks import run_ranks

Row = tuple[int, float, float]
"""Group, label, prediction."""


def by_pairs(rows: list[Row], within_groups: bool) -> float:
    scores = []
    for (group, label, predicted), (other_group, other, other_predicted) in combinations(rows, 2):
        if label == other or (within_groups and group != other_group):
            continue
        if predicted == other_predicted:
            scores.append(0.5)
        else:
            scores.append(float((label > other) == (predicted > other_predicted)))
    return sum(scores) / len(scores) if scores else math.nan


def sums_of(rows: list[Row], weight: float = 1.0) -> OrderedRows:
    groups, labels, predictions = (torch.tensor(column) for column in zip(*rows, strict=True))
    sums, unused = OrderedRows(torch.device("cpu")), torch.zeros(len(rows))
    weights = torch.full((len(rows),), weight)
    sums.update(TaskRows(labels.float(), weights, predictions.float(), unused, unused, groups))
    return sums


few = st.integers(0, 4)
rows_of_few_values = st.lists(st.tuples(st.integers(0, 2), few.map(float), few.map(float)), min_size=1, max_size=90)


@given(rows_of_few_values)
def test_pairs_in_a_loop(rows: list[Row]) -> None:
    """Few values, so that labels and predictions are often equal; more rows than one block."""
    sums = sums_of(rows)
    np.testing.assert_allclose(XAUC.value(sums), by_pairs(rows, within_groups=False), rtol=1e-12)
    np.testing.assert_allclose(GroupedXAUC.value(sums), by_pairs(rows, within_groups=True), rtol=1e-12)


@pytest.mark.parametrize("count", [2, 63, 64, 65, 200, 1000])
def test_sizes_around_blocks(count: int) -> None:
    rng = np.random.default_rng(count)
    labels, predictions = rng.normal(size=count).astype(np.float32), rng.normal(size=count).astype(np.float32)
    rows = [(0, float(a), float(b)) for a, b in zip(labels, predictions, strict=True)]
    ordered, pairs = concordance(labels, predictions)
    assert pairs == count * (count - 1) // 2
    assert ordered / pairs == pytest.approx(by_pairs(rows, within_groups=False))


def test_rows_of_weight_0_and_no_rows() -> None:
    assert math.isnan(XAUC.value(OrderedRows(torch.device("cpu"))))
    assert math.isnan(GroupedXAUC.value(OrderedRows(torch.device("cpu"))))
    assert math.isnan(XAUC.value(sums_of([(0, 1.0, 1.0), (0, 2.0, 2.0)], weight=0.0)))
    assert XAUC.value(sums_of([(0, 1.0, 1.0), (1, 2.0, 3.0)])) == 1.0


def on_a_rank(rows: list[Row]) -> tuple[float, float]:
    with process_group("cpu", 60) as ranks:
        sums = sums_of(rows[:30] if ranks.rank == 0 else rows[30:]).over_ranks()
        return XAUC.value(sums), GroupedXAUC.value(sums)


@pytest.mark.distributed
def test_pairs_of_two_ranks_count() -> None:
    rng = np.random.default_rng(0)
    rows = [(int(group), *rng.normal(size=2).tolist()) for group in rng.integers(0, 4, 100)]
    expected = XAUC.value(sums_of(rows)), GroupedXAUC.value(sums_of(rows))
    assert run_ranks(2, on_a_rank, rows) == [expected, expected]
