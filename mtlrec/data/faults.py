"""Bad values in a window, and what becomes of their rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtlrec.data.dataset import OnError
from mtlrec.data.errors import DataError
from mtlrec.data.parquet import Rows


class Faults:
    """Collects the rows that are left out. `fail` raises at the first; `skip_row` leaves out the row, `skip_file` what
    this window has of its row group.

    Attributes:
        rows: [N] bool, or None while nothing was found
        messages: the first fault of each file
    """

    def __init__(self, rows: Rows, on_error: OnError) -> None:
        self._of, self._on_error = rows, on_error
        self.rows: np.ndarray | None = None
        self.messages: dict[str, str] = {}
        first = 0
        for group, piece, fault in zip(rows.groups, rows.pieces, rows.faults, strict=True):
            if fault is not None:
                self._leave_out(slice(first, first + len(piece)), group.file.name, fault)
            first += len(piece)

    def found(self, wrong: np.ndarray, column: str, say: Callable[[int], str]) -> None:
        """wrong [N] bool: rows where `column` holds what it must not; `say(row)` tells what and the remedy.

        Raises DataError with file, row group, row, column and value where faults end the job.
        """
        if not wrong.any():
            return
        first = 0
        for group, piece in zip(self._of.groups, self._of.pieces, strict=True):
            here = wrong[first : first + len(piece)]
            if here.any():
                row = first + int(np.argmax(here))
                message = f"{self._of.where(row)}: column '{column}' {say(row)}"
                if self._on_error == "fail":
                    raise DataError(message)
                whole = slice(first, first + len(piece))
                self._leave_out(
                    whole if self._on_error == "skip_file" else np.flatnonzero(wrong), group.file.name, message
                )
            first += len(piece)

    def _leave_out(self, rows: slice | np.ndarray, file: str, message: str) -> None:
        if self.rows is None:
            self.rows = np.zeros(self._of.table.num_rows, bool)
        self.rows[rows] = True
        self.messages.setdefault(file, message)
