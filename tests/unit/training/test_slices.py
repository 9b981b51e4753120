"""Columns cut into slices, and the AUC within them against scikit-learn's."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mtlrec.heads import HeadOutput
from mtlrec.losses.multitask import LossReport
from mtlrec.losses.spaces import Populations
from mtlrec.models.train_module import StepOutput
from mtlrec.training.grouped_auc import auc_of_groups
from mtlrec.training.slices import SliceRows, sliced
from tests.toy import toy_job


def test_few_values_are_slices_of_their_own() -> None:
    codes, names = sliced(pa.array([3, 1, None, 1, 10], pa.int32()))
    assert names == ["1", "3", "10", "null"]
    assert codes.tolist() == [1, 0, 3, 0, 2]
    codes, names = sliced(pa.array(["b", "a", "b", None]))
    assert (codes.tolist(), names) == ([0, 1, 0, 2], ["b", "a", "null"])
    codes, names = sliced(pa.array([True, False, True]))
    assert (codes.tolist(), names) == ([0, 1, 0], ["True", "False"])
    codes, names = sliced(pa.array([datetime.date(2026, 1, 2)] * 2))
    assert (codes.tolist(), names) == ([0, 0], ["2026-01-02"])


def test_many_numbers_are_cut_into_parts_of_as_many_rows() -> None:
    values = np.random.default_rng(0).permutation(np.arange(100.0))
    codes, names = sliced(pa.array([*values, float("nan")]))
    assert names == [
        "0 to below 19.8",
        "19.8 to below 39.6",
        "39.6 to below 59.4",
        "59.4 to below 79.2",
        "79.2 to 99",
        "null",
    ]
    assert np.bincount(codes).tolist() == [20, 20, 20, 20, 20, 1]
    assert (codes[:-1] == values // 20).all()
    codes, names = sliced(pa.array([0] * 50 + list(range(1, 51))))
    assert names[0] == "0 to below 10.4", "where a value is most of a part, there are fewer parts"
    assert len(names) == 3 == codes.max() + 1


def test_of_many_words_the_rarest_are_put_together() -> None:
    words = [f"w{index}" for index in range(20) for _ in range(20 - index)]
    codes, names = sliced(pa.array(words))
    assert names == [*(f"w{index}" for index in range(11)), "others"]
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
    populations = Populations(targets, space, space, torch.ones_like(space), zeros, zeros)
    report = LossReport(zeros, zeros, zeros, torch.ones(tasks, dtype=torch.bool), populations)
    return StepOutput(HeadOutput(logits, log_p, log_not_p, log_p), report, "here.parquet")


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


def test_words_of_a_dictionary_are_words_and_lists_are_refused() -> None:
    logits = torch.zeros(2, 4)
    rows = SliceRows("city", toy_job())
    rows.add(pa.chunked_array([pa.array(["a", "b"]).dictionary_encode()]), step(logits, logits, logits + 1))
    rows.add(pa.chunked_array([pa.nulls(2)]), step(logits, logits, logits + 1))
    assert rows.compute().names == ["a", "b", "null"]
    with pytest.raises(ValueError, match=r"--slice recent: holds list<.*>; slices are of numbers, text or booleans"):
        SliceRows("recent", toy_job()).add(pa.chunked_array([[[1], [2]]]), step(logits, logits, logits))
