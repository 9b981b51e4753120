"""The options and arguments that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LAST = "last"

Config = Annotated[str, typer.Argument(help="A YAML job, or the name of a recipe (see `mtlrec recipes`).")]
Run = Annotated[Path, typer.Argument(help="The folder of a run: what `train --output` made.")]
RunOrNone = Annotated[Path | None, typer.Argument(help="The folder of a run: what `train --output` made.")]
Artifact = Annotated[
    Path | None,
    typer.Option("--artifact", help="Take what `mtlrec export` made, in place of a run.", show_default=False),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")]
Checkpoint = Annotated[
    str, typer.Option("--checkpoint", help="last, best (see train.keep_best) or the number of a step.")
]
SliceBy = Annotated[
    str | None, typer.Option("--slice", help="A column of the files: each task's AUC within its values.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")]


class Device(StrEnum):
    cuda = "cuda"
    cpu = "cpu"
