"""Which rank takes which rows in which order: a function of the files' footers, the seed and the position alone.

An epoch begins with every row group, in an order that seed and epoch decide. The ranks take contiguous shares of it,
equal to within one row, and each reads its share in windows of up to `shuffle_buffer` rows, which are permuted among
each other. So the whole order is known before a row is read, and a position in it is one number: the batches
that every rank has taken.

Nothing says that the ranks stay the same. When a job goes on with another number of them (or another batch size, or
another shuffle) in mid-epoch, a new `Phase` begins: what all ranks of the phase before had left is the pool that the
new ones divide. Every row of the epoch is taken exactly once, however often that happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

Shuffle = Literal["none", "row_group", "rows"]
GROUPS, WINDOWS = 1, 2
"""What a stream of random numbers is for: its seed begins with it, so that no two are one."""
IN_ORDER = 131_072
"""Rows of a window that is not permuted."""


@dataclass(frozen=True)
class Phase:
    """A stretch of an epoch in which nothing changes; `steps` batches have been taken by every rank."""

    ranks: int
    batch_size: int
    shuffle: Shuffle = "none"
    shuffle_buffer: int = 1
    seed: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Position:
    """Where a job stands in its data: at the beginning of `epoch`, or behind its phases."""

    epoch: int = 0
    phases: tuple[Phase, ...] = ()

    @property
    def steps(self) -> int:
        """Batches of this epoch that every rank has taken."""
        return sum(phase.steps for phase in self.phases)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"epoch": self.epoch, "phases": [asdict(phase) for phase in self.phases]}

    @staticmethod
    def of(state: Mapping[str, Any]) -> Position:
        return Position(int(state["epoch"]), tuple(Phase(**phase) for phase in state["phases"]))


@dataclass(frozen=True)
class Piece:
    """Rows of one row group: a range, or where a shuffled window was left half taken, their numbers in rising order."""

    group: int
    rows: range | np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Piece:
        return Piece(self.group, self.rows[part])


@dataclass(frozen=True)
class Window:
    """Pieces that are read together, the key of the generator that permutes their rows, and how many are taken."""

    pieces: tuple[Piece, ...]
    key: tuple[int, ...] | None
    taken: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def order(self) -> np.ndarray | None:
        """The rows that are left, in the order in which they are taken; None for all as they are."""
        if self.key is None:
            return np.arange(self.taken, len(self)) if self.taken else None
        return np.random.default_rng([WINDOWS, *self.key]).permutation(len(self))[self.taken :]

    def left(self) -> list[Piece]:
        """The rows that are left, in the order of the files."""
        if not self.taken or self.order is None:
            return list(self.pieces)
        rows = np.sort(self.order)
        pieces, first = [], 0
        for piece in self.pieces:
            inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(piece))] - first
            first += len(piece)
            if len(inside) and len(inside) == inside[-1] - inside[0] + 1:
                pieces.append(piece[inside[0] : inside[-1] + 1])
            elif len(inside):
                pieces.append(Piece(piece.group, np.asarray(piece.rows)[inside]))
        return pieces


class EpochOrder:
    """The order of one epoch from the last of `phases` on.

    Args:
        groups: rows of every row group, in the order of the files
        epoch: which one
        phases: those that are over, then the current one
    """

    def __init__(self, groups: Sequence[int], epoch: int, phases: Sequence[Phase]) -> None:
        *over, self.phase = phases
        self._seed, self._phase_number = (self.phase.seed, epoch), (len(over),) if over else ()
        if over:
            before = EpochOrder(groups, epoch, over)
            self.pool = [piece for rank in range(before.phase.ranks) for piece in before._left(rank)]
        else:
            self.pool = _whole(groups, epoch, self.phase)
        self.rows = sum(map(len, self.pool))
        self._shares = split(self.pool, self.phase.ranks)

    @property
    def steps(self) -> int:
        """Batches of this phase if it lasts to the end of the epoch: the rank with the most rows decides."""
        return -(-self.most // self.phase.batch_size)

    @property
    def most(self) -> int:
        """Rows of the rank that has the most."""
        return -(-self.rows // self.phase.ranks)

    def windows(self, rank: int, steps: int = 0) -> list[Window]:
        """What the rank has left to read after so many batches of this phase, the first window perhaps half taken."""
        taken = steps * self.phase.batch_size
        windows = []
        for index, pieces in enumerate(_windows(self._shares[rank], self.phase)):
            key = (*self._seed, rank, index, *self._phase_number) if self.phase.shuffle == "rows" else None
            window = Window(tuple(pieces), key)
            if taken < len(window):
                windows.append(replace(window, taken=taken))
            taken = max(taken - len(window), 0)
        return windows

    def _left(self, rank: int) -> list[Piece]:
        return [piece for window in self.windows(rank, self.phase.steps) for piece in window.left()]


def split(pool: Sequence[Piece], ranks: int) -> list[list[Piece]]:
    """Contiguous shares, equal to within one row."""
    rows = sum(map(len, pool))
    ends = [rows * (rank + 1) // ranks for rank in range(ranks)]
    shares: list[list[Piece]] = [[] for _ in range(ranks)]
    rank = first = 0
    for piece in pool:
        start = 0
        while start < len(piece):
            while ends[rank] <= first + start:
                rank += 1
            stop = min(len(piece), ends[rank] - first)
            shares[rank].append(piece[start:stop])
            start = stop
        first += len(piece)
    return shares


def _whole(groups: Sequence[int], epoch: int, phase: Phase) -> list[Piece]:
    order = np.arange(len(groups))
    if phase.shuffle != "none":
        np.random.default_rng([GROUPS, phase.seed, epoch]).shuffle(order)
    return [Piece(group, range(groups[group])) for group in order.tolist() if groups[group]]


def _windows(share: Sequence[Piece], phase: Phase) -> list[list[Piece]]:
    """Of `shuffle_buffer` rows, or where nothing is permuted of `IN_ORDER`; from half of that on a window ends with a
    row group, because columns of one need not be put together from several."""
    size = phase.shuffle_buffer if phase.shuffle == "rows" else IN_ORDER
    windows: list[list[Piece]] = []
    room = 0
    for piece in share:
        start = 0
        while start < len(piece):
            if not room:
                windows.append([])
                room = size
            stop = min(len(piece), start + room)
            windows[-1].append(piece[start:stop])
            room, start = room - (stop - start), stop
        if 2 * room <= size:
            room = 0
    return windows
