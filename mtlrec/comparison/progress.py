"""How far a comparison is: a table that grows where bars are drawn, a line for every trial in a log."""

from __future__ import annotations

import logging

from rich.live import Live
from rich.table import Table

from mtlrec.comparison.candidates import Candidate
from mtlrec.comparison.trials import Result, Trial
from mtlrec.metrics.text import metrics_line
from mtlrec.training.progress import bar_console

logger = logging.getLogger(__name__)


class Progress:
    """One table that grows, on a terminal; a line for every training that ends, in a log."""

    def __init__(self, candidates: list[Candidate], each: int) -> None:
        self._each = each
        self._done = dict.fromkeys((one.name for one in candidates), 0)
        self._factor: dict[str, float] = {}
        self._last: dict[str, str] = {}
        console = bar_console()
        self._live = None if console is None else Live(console=console, auto_refresh=False)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def ended(self, trial: Trial, result: Result, kept: bool) -> None:
        self._done[trial.candidate] += 1
        said = "diverged" if result.diverged else f"valid: {metrics_line(result.metrics['valid'])}"
        self._last[trial.candidate] = said
        total = self._each * len(self._done)
        self._show(f"{sum(self._done.values())} of {total}: {trial}{' (kept)' if kept else ''}: {said}")

    def chose(self, candidate: str, factor: float) -> None:
        self._factor[candidate] = factor
        self._show(f"{candidate}: learning rates x{factor:g}, by the valid split")

    def _show(self, line: str) -> None:
        if self._live is None:
            logger.info(line)
            return
        table = Table("", "trainings", "learning rates", "the last")
        for name, done in self._done.items():
            factor = f"x{self._factor[name]:g}" if name in self._factor else ""
            table.add_row(name, f"{done} of {self._each}", factor, self._last.get(name, ""))
        self._live.update(table, refresh=True)
