"""What a diagnosis puts into TensorBoard: every figure once, pictures that show what they should."""

import math

import numpy as np
import pytest

from mtlrec.diagnosis.board import scalars_of
from mtlrec.diagnosis.diagnosis import Diagnosis
from mtlrec.diagnosis.heatmap import heatmap
from mtlrec.diagnosis.level_sums import Level
from mtlrec.diagnosis.table_use import TableUse, drawn_norm


def test_every_figure_has_a_name_of_its_own() -> None:
    level = Level(
        name="level 1",
        gates=["click", "like"],
        experts=["a", "b", "c"],
        gate=[[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]],
        deviation=[[0.1] * 3] * 2,
        weight=[[0.5, 0.2, 0.3]] * 2,
        entropy=[0.9, 0.8],
        peaked=[0.1, 0.2],
        norm=[1.0, 2.0, 3.0],
        zeros=[0.4, 0.5, 0.6],
    )
    table = TableUse("user", 100, 50, 20, 0.5, drawn_norm=0.2, hot_norm=0.8, seen_norm=0.4, other_norm=0.2)
    found = Diagnosis(100, [level], ["click", "like"], [1.0, 2.0], [[1.0, 0.3], [0.3, 1.0]], [table])
    named = list(scalars_of(found))
    scalars = dict(named)
    assert len(scalars) == len(named) == 2 * 2 + 2 * 3 + 2 * 3 + 2 + 1 + 3
    assert scalars["gate/level 1/like/b"] == 0.6
    assert scalars["gate_entropy/level 1/like"] == 0.8
    assert scalars["gate_over_0.9/level 1/click"] == 0.1
    assert scalars["expert_norm/level 1/c"] == 3.0
    assert scalars["expert_zeros/level 1/c"] == 0.6
    assert scalars["gradient_norm/like"] == 2.0
    assert scalars["gradient_cosine/click/like"] == 0.3
    assert scalars["table_growth/user/hot"] == pytest.approx(4)
    assert scalars["table_growth/user/other"] == pytest.approx(1)


def test_blue_is_high_orange_is_low_and_what_is_unknown_is_blank() -> None:
    picture = heatmap([[1.0, -1.0], [0.0, math.nan]], ["a", "long name"], ["x", "y"], "cosines", 1.0)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    colors = {tuple(int(part) for part in color) for color in picture.reshape(-1, 3)}
    assert {(52, 140, 204), (217, 108, 40), (246, 247, 248)} <= colors
    whole = heatmap([[1.0, -1.0], [0.0, 0.0]], ["a", "long name"], ["x", "y"], "cosines", 1.0)
    assert whole.shape == picture.shape
    assert (whole != picture).any()
    blue = np.argwhere((picture == (52, 140, 204)).all(-1))
    orange = np.argwhere((picture == (217, 108, 40)).all(-1))
    assert blue[:, 0].min() == orange[:, 0].min(), "the same row"
    assert blue[:, 1].max() < orange[:, 1].min(), "the column to the left"


@pytest.mark.parametrize("dim", [1, 8, 64, 1000])
def test_the_norm_of_a_row_as_drawn(dim: int) -> None:
    rows = 0.05 * np.random.default_rng(0).normal(size=(4000, dim))
    assert drawn_norm(dim, std=0.05) == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=0.03)
