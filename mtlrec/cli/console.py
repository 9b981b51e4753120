"""What the verbs print: a result as tables or as one JSON object, and bars of long work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from mtlrec.display import WIDTH, Displayable


def show(result: Displayable, as_json: bool) -> None:
    """Print a result. Of several ranks the first prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        print_json(result.to_dict())
        return
    console = wide_console()
    for part in result.parts():
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)
        else:
            console.print(part)


def print_json(value: Any) -> None:
    print(json.dumps(value))


def print_text_or_json(value: Any, as_json: bool, text: str) -> None:
    if as_json:
        print_json(value)
    else:
        print(text)


def wide_console() -> Console:
    """A log is read without a terminal's edge."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDTH)


@contextmanager
def row_counts(as_json: bool) -> Iterator[Callable[[str, int], None]]:
    """A line on the screen for every file and split, with its rows so far."""
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as screen:
        tasks: dict[str, TaskID] = {}

        def update(what: str, rows: int) -> None:
            if what not in tasks:
                tasks[what] = screen.add_task(what, total=None)
            screen.update(tasks[what], completed=rows)

        yield update
