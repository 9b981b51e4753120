"""`mtlrec export`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mtlrec import api
from mtlrec.cli.console import print_json, show, wide_console
from mtlrec.cli.options import LAST, Checkpoint, Device, Json, OutputFolder, Run, Set
from mtlrec.errors import ParityError


class Quantize(StrEnum):
    int8 = "int8"
    fp16 = "fp16"
    none = "none"


def export(
    run: Run,
    output: OutputFolder,
    quantize: Annotated[
        Quantize, typer.Option(help="What the tables are kept as; the rest stays float32.")
    ] = Quantize.none,
    device: Annotated[Device, typer.Option(help="Where it will run; it is compiled there too.")] = Device.cpu,
    split: Annotated[str, typer.Option(help="Whose rows are compared: train, valid or test.")] = "valid",
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far compiled and eager may differ in any row's prediction.")
    ] = 1e-6,
    max_auc_change: Annotated[
        float, typer.Option(min=0, help="How far quantized tables may move a task's AUC.")
    ] = 5e-4,
    checkpoint: Checkpoint = LAST,
    overwrite: Annotated[bool, typer.Option(help="Replace the artifact in --output.")] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Make a run's checkpoint one folder to serve: tables gathered and quantized, the model compiled ahead of time, and
    held against the checkpoint on a split. It runs without mtlrec and TorchRec; `predict --artifact` and `evaluate
    --artifact` take it, and mtlrec.serving.Predictor in a server."""
    try:
        result = api.export(
            run,
            output,
            quantize=quantize.value,
            device=device.value,
            split=split,
            tolerance=tolerance,
            max_auc_change=max_auc_change,
            checkpoint=checkpoint,
            overwrite=overwrite,
            overrides=set_ or [],
            progress=True,
        )
    except ParityError as error:
        from mtlrec.serving.tables import parity_table

        if as_json:
            print_json(error.parity.model_dump(mode="json"))
        else:
            wide_console().print(parity_table(error.parity))
        raise
    show(result, as_json)
