"""Rows with bad values: which they are, what is wrong, and how many a job has left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtlrec.data.sources.dataset import Dataset
from mtlrec.data.sources.parquet import WindowTable
from mtlrec.errors import DataError

logger = logging.getLogger(__name__)


class RowErrors:
    """Collects the rows that are left out.

    Attributes:
        bad_mask: [N] bool, the rows that are left out, or None while there is none
        messages: the first error of each file and column, or of each file that could not be read
    """

    def __init__(self, count: int) -> None:
        self.bad_mask: np.ndarray | None = None
        self.messages: dict[tuple[str, str], str] = {}
        self._count = count

    def add(self, wrong: np.ndarray, column: str, describe: Callable[[int], str]) -> None:
        """wrong [N] bool: rows where `column` holds what it must not; `describe(row)` tells what and the remedy."""
        raise NotImplementedError

    def _leave_out(self, rows: slice | np.ndarray) -> None:
        if self.bad_mask is None:
            self.bad_mask = np.zeros(self._count, bool)
        self.bad_mask[rows] = True


class FileRowErrors(RowErrors):
    """Of rows that files hold, those first that could not be read.

    Args:
        ends: whether a bad value raises, instead of leaving its row out
    """

    def __init__(self, rows: WindowTable, ends: bool) -> None:
        super().__init__(rows.table.num_rows)
        self._of, self._ends = rows, ends
        first = 0
        for group, piece, fault in zip(rows.row_groups, rows.pieces, rows.piece_errors, strict=True):
            if fault is not None:
                self._leave_out(slice(first, first + len(piece)))
                self.messages.setdefault((group.file.name, ""), fault)
            first += len(piece)

    def add(self, wrong: np.ndarray, column: str, describe: Callable[[int], str]) -> None:
        """Raises DataError with file, row group, row, column and value where errors end the job."""
        if self.bad_mask is not None:
            wrong = wrong & ~self.bad_mask
        if not wrong.any():
            return
        first = 0
        for group, piece in zip(self._of.row_groups, self._of.pieces, strict=True):
            here = wrong[first : first + len(piece)]
            if here.any():
                row = first + int(np.argmax(here))
                message = f"{self._of.where(row)}: column '{column}' {describe(row)}"
                if self._ends:
                    raise DataError(message)
                self.messages.setdefault((group.file.name, column), message)
            first += len(piece)
        self._leave_out(wrong)


class RawRowErrors(RowErrors):
    """Of rows that come from no file, each one's first fault.

    Attributes:
        reasons: by row, why it is left out
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.reasons: dict[int, str] = {}

    def add(self, wrong: np.ndarray, column: str, describe: Callable[[int], str]) -> None:
        for row in np.flatnonzero(wrong).tolist():
            if row not in self.reasons:
                self.reasons[row] = f"column '{column}' {describe(row)}"
        if wrong.any():
            self._leave_out(wrong)

    def leave_out_all(self, reason: str) -> None:
        """Every row that has no fault yet gets this one."""
        self.reasons |= {row: reason for row in range(self._count) if row not in self.reasons}
        self._leave_out(slice(None))


class Skipped:
    """What `data.on_error` leaves out of an epoch, or of one pass: each file and column is told once, and too much
    of it ends the job.

    Args:
        dataset: whose files that were left out as a whole count for every rank's share
        most: rows per rank and epoch; with more DataError is raised

    Attributes:
        rows: left out so far, of this rank, with its share of the files
        of_whole_files: of all ranks
    """

    def __init__(self, dataset: Dataset, most: int, rank: int = 0, ranks: int = 1) -> None:
        # A file whose footer tells nothing had a row at least.
        self.of_whole_files = sum(1 if one.rows is None else one.rows for one in dataset.left_out)
        self._share = -(-self.of_whole_files // ranks)
        self._most = most
        self._told: set[tuple[str, str]] = set()
        self.rows = 0
        if rank == 0:
            for one in dataset.left_out:
                logger.warning(f"left out: {one.message}")
        self.begin()
        self._check([one.message for one in dataset.left_out])

    def begin(self) -> None:
        """A new epoch."""
        self.rows = self._share

    @property
    def within_files(self) -> int:
        """Of the files that are read, this rank's."""
        return self.rows - self._share

    def add(self, rows: int, messages: Mapping[tuple[str, str], str]) -> None:
        self.rows += rows
        for key, message in messages.items():
            if key not in self._told:
                self._told.add(key)
                logger.warning(f"left out: {message}")
        self._check(list(messages.values()))

    def _check(self, messages: Sequence[str]) -> None:
        if self.rows > self._most:
            raise DataError(
                f"{self.rows:,} rows were left out, data.max_skipped allows {self._most:,} per rank and epoch; mend "
                f"the data or raise it; the last fault: {messages[-1]}"
            )
