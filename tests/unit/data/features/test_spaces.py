"""Targets and sample spaces against a plain loop over rows; columns that are the same in every row cost nothing."""

import dataclasses

import numpy as np
import pytest
import torch

from mtlrec.data.features.conditions import rows_where
from mtlrec.data.features.spaces import SampleSpaces
from mtlrec.data.labels import LabelColumns
from tests.support.funnel import by_hand, rows, spaces_of
from tests.support.labels import labeled
from tests.support.toy import collated, toy_job, toy_table


@pytest.mark.parametrize("is_conditional", [True, False])
@pytest.mark.parametrize("row_weights", [[None] * 5, [6, None, 6, None, 6]], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("known_share", [0.85, 1.0])
def test_spaces_match_a_loop(is_conditional: bool, row_weights: list[int | None], known_share: float) -> None:
    labels, known, mask = rows(300, known_share=known_share)
    batch = labeled(spaces_of(is_conditional, row_weights), labels, known, mask)
    expected = by_hand(labels.numpy(), known.numpy(), mask.numpy(), is_conditional, row_weights)
    np.testing.assert_array_equal(batch.in_space, expected.space)
    np.testing.assert_array_equal(batch.entire_space, expected.entire)
    np.testing.assert_array_equal(batch.label_faults, expected.faults)
    np.testing.assert_allclose(batch.sample_weights, expected.weights, rtol=1e-6)
    assert expected.faults[0, 1:3].min() > 0
    assert (expected.faults[1, 1:3].min() > 0) == (known_share < 1)
    inside = expected.entire > 0
    np.testing.assert_array_equal(batch.targets.numpy() * inside, expected.targets * inside)


def test_a_flag_may_be_read_outside_its_space_and_a_number_may_not() -> None:
    """ESCM2 reads the parent's label of rows that do not count for the parent."""
    labels, known, mask = rows(300)
    batch = labeled(spaces_of(True, [6, None, None, None, None]), labels, known, mask)
    click = labels[:, 0] * mask
    assert torch.equal(batch.targets[:, 0], click)
    assert (batch.targets[:, 0][~batch.in_space[:, 0]] == 1).any()
    assert not batch.targets[:, 4][~batch.in_space[:, 4]].any()


def test_a_number_outside_its_space_may_be_anything() -> None:
    labels, known, mask = rows(50)
    labels[labels[:, 0] == 0, 5] = torch.inf  # watched nothing of length nothing
    assert torch.isfinite(labeled(spaces_of(False), labels, known, mask).targets).all()


def test_a_consistent_funnel_has_the_labels_of_its_columns() -> None:
    """All are known: every row is in the entire space, and no row has a fault."""
    click, buy = np.float32([0, 1, 1, 0]), np.float32([0, 1, 0, 0])
    spaces = SampleSpaces([0, 1], [None, 0], [None, None], False, [None, None], [True, True])
    found = spaces(LabelColumns([click, buy], [None, None]))
    assert found.targets.tolist() == [click.tolist(), buy.tolist()]
    assert found.entire_space is found.in_space
    assert found.in_space.all()
    assert (found.weights == 1).all()
    assert not found.has_faults
    conditional = dataclasses.replace(spaces, is_conditional=True)(LabelColumns([click, buy], [None, None]))
    assert conditional.entire_space.all()
    assert conditional.in_space.tolist() == [[True] * 4, [False, True, True, False]]


def test_rows_that_are_taken_or_left_out_have_the_labels_of_their_columns() -> None:
    """Blocks are shuffled and cut before their spaces are computed."""
    labels, known, _ = rows(40)
    columns = LabelColumns(list(labels.numpy().T), [column > 0 for column in known.numpy().T])
    spaces = spaces_of(True, [6, None, 6, None, None])
    order, bad = np.random.default_rng(0).permutation(40), np.arange(40) % 3 == 0
    found, taken = spaces(columns), spaces(columns.take(lambda column: column[order]))
    kept = spaces(columns.blank(bad), ~bad)
    for name in ("targets", "in_space", "entire_space", "weights", "inconsistent", "missing"):
        before, after, rest = (getattr(one, name) for one in (found, taken, kept))
        np.testing.assert_array_equal(after, before[:, order])
        np.testing.assert_array_equal(rest, np.where(bad, 0, before))
    assert found.faults(0, 40).sum() == taken.faults(0, 13).sum() + taken.faults(13, 40).sum()
    assert found.faults(0, 40)[:, 1:3].min() > 0


def test_spaces_of_a_job() -> None:
    job = toy_job(model={"heads": {"kind": "independent"}})
    spaces = SampleSpaces.of(job)
    assert (spaces.labels, spaces.parents) == ([0, 1, 2, 3], [None, 0, None, None])
    assert spaces.conditions == [None, None, ("holds", ("column", 4)), ("holds", ("task", 0))]
    assert spaces.is_flag == [True, True, True, False]
    assert [job.is_conditional, toy_job().is_conditional] == [True, False]
    assert not toy_job(model={"heads": {"kind": "independent", "entire_space": True}}).is_conditional
    batch = collated(toy_table(30), 35, job)
    assert torch.equal(batch.in_space[:, 1], batch.targets[:, 0] == 1)
    assert not batch.entire_space[30:].any()


def test_what_is_no_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="is no condition"):
        rows_where(("click",), lambda source: (np.ones(4), None))
