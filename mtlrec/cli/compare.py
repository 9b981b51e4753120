"""`mtlrec compare`: which architecture wins on one's own data, by how much, and how sure that is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from mtlrec import api
from mtlrec.cli.console import show
from mtlrec.cli.options import Config, Json, Set, SliceBy
from mtlrec.errors import ConfigError


class Match(StrEnum):
    parameters = "parameters"
    flops = "flops"
    none = "none"


MEASURES: dict[Match, Literal["parameters", "flops"] | None] = {
    Match.parameters: "parameters",
    Match.flops: "flops",
    Match.none: None,
}


def compare(
    config: Config,
    output: Annotated[Path, typer.Option("--output", "-o", help="The comparison's folder; given again, it goes on.")],
    fusion: Annotated[
        str, typer.Option(help="Fusion kinds, with commas between; by default all that go with the job.")
    ] = "",
    heads: Annotated[str, typer.Option(help="Kinds of heads; by default the job's.")] = "",
    weighting: Annotated[str, typer.Option(help="Kinds of loss weighting; by default the job's.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each architecture.")] = 5,
    learning_rates: Annotated[
        str,
        typer.Option(
            help="Comma-separated multipliers of the job's learning rates. The best on the valid split is kept."
        ),
    ] = "0.3,1,3",
    tuning_seeds: Annotated[
        int, typer.Option(min=1, help="How many of the seeds try every learning rate; more choose with less luck.")
    ] = 1,
    match: Annotated[
        Match, typer.Option(help="What is equal after the embedding lookup: the experts' widths are chosen so.")
    ] = Match.parameters,
    metric: Annotated[
        str, typer.Option(help="Judges the tasks that have it, the others are judged by their first: auc or mse.")
    ] = "auc",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time; by default one per core or GPU.")
    ] = None,
    slice_by: SliceBy = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train the job's data under several architectures of one size, with several seeds, and say which is better where.

    What is finished is kept in --output and not run again."""
    with _sigterm_interrupts():
        result = api.compare(
            config,
            output,
            fusions=_words(fusion) if fusion else None,
            heads=_words(heads),
            weightings=_words(weighting),
            seeds=seeds,
            learning_rates=_numbers(learning_rates),
            tuning_seeds=tuning_seeds,
            match=MEASURES[match],
            metric=metric,
            jobs=jobs,
            slice_by=slice_by,
            overrides=set_ or [],
            progress=True,
        )
    show(result, as_json)
    if not as_json:
        print(f"{output / 'report.html'}; every figure: {output / 'results.parquet'}", file=sys.stderr)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """So that the trainings that were started end too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    try:
        found = [float(word) for word in _words(text)]
    except ValueError:
        found = []
    if not found or not all(0 < number < float("inf") for number in found):
        raise ConfigError(f"--learning-rates {text}: positive numbers with commas between, such as 0.3,1,3")
    return list(dict.fromkeys(found))
