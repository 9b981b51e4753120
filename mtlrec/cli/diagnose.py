"""`mtlrec diagnose`."""

from __future__ import annotations

from typing import Annotated

import typer

from mtlrec import api
from mtlrec.api.analysis import BATCHES
from mtlrec.cli.console import show
from mtlrec.cli.options import Json, Run, SliceBy


def diagnose(
    run: Run,
    split: Annotated[str, typer.Option(help="valid, test or train.")] = "valid",
    batches: Annotated[int, typer.Option(min=1, help="How many batches of it to look at.")] = BATCHES,
    slice_by: SliceBy = None,
    as_json: Json = False,
) -> None:
    """Look into a trained model: what its gates give the experts, which experts are dead, whether tasks' gradients
    agree, which rows its tables are asked for, whether its probabilities hold; and what may be done about it."""
    show(api.diagnose(run, split, batches=batches, slice_by=slice_by, progress=True), as_json)
