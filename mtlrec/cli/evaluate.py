"""`mtlrec evaluate`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mtlrec import api
from mtlrec.cli.console import show
from mtlrec.cli.options import LAST, Artifact, Checkpoint, Json, RunOrNone, Set


class CalibrationMethod(StrEnum):
    platt = "platt"
    isotonic = "isotonic"


def evaluate(
    run: RunOrNone = None,
    artifact: Artifact = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    calibrate: Annotated[
        CalibrationMethod | None,
        typer.Option(
            help="Fit a map of each task's probabilities on the valid split, and keep it with the checkpoint."
        ),
    ] = None,
    rank_metric: Annotated[
        str | None,
        typer.Option(
            help="ndcg@K or hit_rate@K within metrics.group_by: search the powers of the product of predictions (of "
            "binary and watch-time tasks) that ranks best on the valid split, and keep them with the checkpoint, for "
            "predict to write fused_score."
        ),
    ] = None,
    relevance: Annotated[
        str, typer.Option(help="What an impression was worth, as in click,like=2; by default 1 for each binary label.")
    ] = "",
    exponents: Annotated[
        str, typer.Option(help="Take these powers, as in click=1,long_view=0.5; search none and keep none.")
    ] = "",
    checkpoint: Checkpoint = LAST,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint of a run, or an artifact; the number of ranks need not be that of the training."""
    result = api.evaluate(
        run,
        split,
        artifact=artifact,
        calibrate=None if calibrate is None else calibrate.value,
        rank_metric=rank_metric,
        relevance=relevance,
        exponents=exponents,
        checkpoint=checkpoint,
        overrides=set_ or [],
        progress=True,
    )
    show(result, as_json)
