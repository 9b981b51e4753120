"""Results that people look at and programs read: tables on a terminal, in a notebook and as text; a plain dict."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

WIDTH = 160
"""Columns of a table where there is no terminal."""


class Displayable:
    """What a verb returns. Subclasses say what is shown (`parts`) and what `--json` prints (`to_dict`)."""

    def parts(self) -> Iterable[RenderableType]:
        """Tables, and lines of text between them, in their order."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain types of JSON; None for NaN and infinity."""
        raise NotImplementedError

    def __rich__(self) -> RenderableType:
        return Group(*(Text(part) if isinstance(part, str) else part for part in self.parts()))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, record=True)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre style='line-height:1.2'>{code}</pre>")
