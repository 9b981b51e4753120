"""`mtlrec predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtlrec import api
from mtlrec.cli.console import show
from mtlrec.cli.options import LAST, Artifact, Checkpoint, Json, RunOrNone, Set


def predict(
    source: Annotated[str, typer.Option("--input", help="A file, folder, glob or URI of Parquet files.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The Parquet file to write; a folder on several ranks.")
    ],
    run: RunOrNone = None,
    artifact: Artifact = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave aside what `evaluate --calibrate` has fitted.")] = False,
    exponents: Annotated[
        str,
        typer.Option(
            help="Write fused_score too, the product of predictions to these powers, as in click=1,like=0.5; by "
            "default with what `evaluate --rank-metric` has kept."
        ),
    ] = "",
    checkpoint: Checkpoint = LAST,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Score rows: the input's columns (or data.keys), one pred_TASK column per task, fused_score where there is one; by
    an artifact also `error`, which says why a row has no scores, where a run goes by data.on_error."""
    result = api.predict(
        run,
        source,
        output,
        artifact=artifact,
        raw=raw,
        exponents=exponents,
        checkpoint=checkpoint,
        overrides=set_ or [],
        progress=True,
    )
    show(result, as_json)
