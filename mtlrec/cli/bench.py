"""`mtlrec bench`: how fast a job trains, and what its steps are spent on."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtlrec import api
from mtlrec.cli.console import show
from mtlrec.cli.options import Config, Json, Set
from mtlrec.errors import ConfigError


class SourceKind(StrEnum):
    train = "train"
    memory = "memory"
    random = "random"


def bench(
    config: Config,
    steps: Annotated[
        int, typer.Option(min=5, help="Steps to time; others are taken between, and under a profiler.")
    ] = 100,
    source: Annotated[
        SourceKind,
        typer.Option(help="train: the job's files; memory: batches of them made beforehand; random: no files."),
    ] = SourceKind.train,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks to start on this machine, which share its cores; not under torchrun."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write rank 0's last profile here, for Perfetto or chrome://tracing.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Parts the steps are measured in. More rounds give steadier figures.")
    ] = 5,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train a job for some steps and say how fast: samples per second, what a step is spent on, memory, ceilings.
    Keeps nothing of the model."""
    job = api.load_job(config, set_ or [])  # a mistake is told once, before ranks are started
    if trace is not None and not trace.absolute().parent.is_dir():
        raise ConfigError(f"--trace {trace}: there is no folder {trace.absolute().parent}")
    if trace is not None and trace.is_dir():
        raise ConfigError(f"--trace {trace}: is a folder; name a file")
    if trace is not None:
        trace.touch()  # what cannot be written is told before anything is measured
    if world_size is not None and "RANK" in os.environ:
        raise ConfigError("--world-size: torchrun has started the ranks already; leave it out")
    if world_size is not None and world_size > 1:
        _become_ranks(world_size)

    show(api.bench(job, steps=steps, source=source.value, trace=trace, rounds=rounds), as_json)


def _become_ranks(world_size: int) -> NoReturn:
    """This command again, on so many ranks, in the place of this process: what ends it then ends torchrun."""
    words, left_out = [], 0
    for word in sys.argv[1:]:
        if word.split("=")[0] == "--world-size":
            left_out = 1 if "=" in word else 2
        if left_out:
            left_out -= 1
        else:
            words.append(word)
    threads = str(max(1, (os.cpu_count() or 1) // world_size))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    os.execvpe(sys.executable, [*command, "-m", "mtlrec", *words], {"OMP_NUM_THREADS": threads} | os.environ)
