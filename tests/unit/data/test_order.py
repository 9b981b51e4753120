"""Every row exactly once per epoch, on the same steps for every rank, however often the ranks change in mid-epoch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlrec.data.order import EpochOrder, Phase, Piece, Position, Window, split

PHASES = st.builds(
    Phase,
    ranks=st.integers(1, 5),
    batch_size=st.integers(1, 13),
    shuffle=st.sampled_from(["none", "row_group", "rows"]),
    shuffle_buffer=st.integers(1, 50),
    seed=st.integers(0, 3),
    steps=st.integers(0, 8),
)
GROUPS = st.lists(st.integers(0, 17), min_size=1, max_size=9).filter(any)


def rows_of(windows: Sequence[Window], groups: Sequence[int]) -> list[int]:
    """Numbers of the rows over all row groups, in the order in which they are taken."""
    first = np.concatenate([[0], np.cumsum(groups)])
    taken: list[int] = []
    for window in windows:
        rows = np.concatenate([first[piece.group] + np.asarray(piece.rows) for piece in window.pieces])
        taken += (rows if window.order is None else rows[window.order]).tolist()
    return taken


@settings(max_examples=300)
@given(groups=GROUPS, phases=st.lists(PHASES, min_size=1, max_size=4), epoch=st.integers(0, 2))
def test_every_row_once_whatever_changes(groups: list[int], phases: list[Phase], epoch: int) -> None:
    seen: list[int] = []
    over: list[Phase] = []
    for phase in phases:
        order = EpochOrder(groups, epoch, [*over, phase])
        phase = replace(phase, steps=min(phase.steps, order.steps))
        whole = [rows_of(order.windows(rank), groups) for rank in range(phase.ranks)]
        assert max(map(len, whole)) - min(map(len, whole)) <= 1
        assert order.steps == -(-max(map(len, whole)) // phase.batch_size)
        over.append(phase)
        here = EpochOrder(groups, epoch, over)
        for rank, rows in enumerate(whole):
            taken = phase.steps * phase.batch_size
            assert rows_of(here.windows(rank, phase.steps), groups) == rows[taken:]  # any position is reached again
            seen += rows[:taken]
    last = EpochOrder(groups, epoch, over)
    seen += [row for rank in range(last.phase.ranks) for row in rows_of(last.windows(rank, phase.steps), groups)]
    assert sorted(seen) == list(range(sum(groups)))


@given(groups=GROUPS, ranks=st.integers(1, 7))
def test_shares_are_contiguous_and_even(groups: list[int], ranks: int) -> None:
    pool = [Piece(index, range(rows)) for index, rows in enumerate(groups) if rows]
    shares = split(pool, ranks)
    assert len(shares) == ranks
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    flat = [(piece.group, row) for share in shares for piece in share for row in piece.rows]
    assert flat == [(piece.group, row) for piece in pool for row in piece.rows]


def order_of(phase: Phase, epoch: int, groups: Sequence[int] = (10,) * 10) -> list[int]:
    order = EpochOrder(groups, epoch, [phase])
    return [row for rank in range(phase.ranks) for row in rows_of(order.windows(rank), groups)]


def test_shuffling_depends_on_seed_and_epoch_only() -> None:
    phase = Phase(1, 8, "rows", 30, seed=0)
    assert order_of(phase, 0) == order_of(phase, 0)
    assert order_of(phase, 0) != order_of(phase, 1) != order_of(replace(phase, seed=1), 1)
    assert order_of(replace(phase, shuffle="none"), 0) == list(range(100))
    by_group = order_of(replace(phase, shuffle="row_group"), 0)
    assert by_group != list(range(100))
    assert all(by_group[i : i + 10] == list(range(by_group[i], by_group[i] + 10)) for i in range(0, 100, 10))


def test_a_window_is_no_larger_than_the_buffer() -> None:
    windows = EpochOrder([10] * 10, 0, [Phase(1, 8, "rows", 35)]).windows(0)
    assert [len(window) for window in windows] == [20] * 5, "from half of the buffer on it ends with a row group"
    windows = EpochOrder([10] * 10, 0, [Phase(1, 8, "rows", 4)]).windows(0)
    assert [len(window) for window in windows] == [4, 4, 2] * 10
    windows = EpochOrder([100], 0, [Phase(1, 8, "rows", 40)]).windows(0)
    assert [len(window) for window in windows] == [40, 40, 20]


def test_ranks_permute_their_windows_differently() -> None:
    order = EpochOrder([8, 8], 0, [Phase(2, 4, "rows", 8)])
    first, second = (order.windows(rank)[0].order for rank in range(2))
    assert first is not None
    assert not np.array_equal(first, second)


def test_a_position_survives_as_plain_values() -> None:
    position = Position(3, (Phase(2, 8, "rows", 100, 7, steps=4), Phase(1, 8, steps=2)))
    assert Position.of(position.state_dict()) == position
    assert position.steps == 6


def test_row_groups_come_in_another_order_in_another_epoch() -> None:
    phase = Phase(1, 8, "row_group", seed=0)
    orders = [order_of(phase, epoch) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(100)) for order in orders)
