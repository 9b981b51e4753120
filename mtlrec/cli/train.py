"""`mtlrec train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtlrec import api
from mtlrec.cli.console import show
from mtlrec.cli.options import Config, Json, Set

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def train(
    config: Config,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run's folder.")],
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option(help="Continue the run in --output from its last checkpoint, if it has one.")
    ] = False,
    init_from: Annotated[Path | None, typer.Option(help="Start from the weights of another run.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Remove what is in --output first.")] = False,
    as_json: Json = False,
) -> None:
    """Train a job and report the metrics of its valid and test splits."""
    result = api.train(
        config,
        output,
        overrides=set_ or [],
        resume=resume,
        init_from=init_from,
        overwrite=overwrite,
        progress=True,
    )
    if result.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if result.stopped is None:
        show(result, as_json)
