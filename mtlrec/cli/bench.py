"""`mtlrec bench`: how fast a job trains, and what its steps are spent on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.table import Table

from mtlrec.cli.data import wide_console
from mtlrec.config.file import load_config
from mtlrec.errors import ConfigError

if TYPE_CHECKING:
    from mtlrec.benchmark.benchmark import Benchmark


class SourceKind(StrEnum):
    train = "train"
    memory = "memory"
    random = "random"


def bench(
    config: Annotated[str, typer.Argument(help="A YAML job, or the name of a recipe (see `mtlrec recipes`).")],
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
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")] = False,
) -> None:
    """Train a job for some steps and say how fast: samples per second, what a step is spent on, memory, ceilings.
    Keeps nothing of the model."""
    job = load_config(config, set_ or [])  # a mistake is told once, before ranks are started
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

    from mtlrec.benchmark.benchmark import bench as measure
    from mtlrec.distributed.process_group import process_group

    with process_group(job.train.device, job.train.timeout_s) as ranks:
        found = measure(job, ranks, steps, source.value, trace)
        if ranks.is_first:
            if as_json:
                print(json.dumps(asdict(found)))
            else:
                console = wide_console()
                for part in _report(found):
                    console.print(part, soft_wrap=True)


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


def _megabytes(by_kind: dict[str, float]) -> str:
    return ", ".join(f"{kind} {size:.2f} MB" for kind, size in by_kind.items()) or "nothing"


def _report(found: Benchmark) -> Iterator[Table | str]:
    ranks = f"{found.world_size} {'rank' if found.world_size == 1 else 'ranks'} of {found.threads} threads"
    speed = Table("", "", title=f"{found.job}, {found.device}, {ranks}, batches of {found.batch_size} ({found.source})")
    for name, value in {
        "samples/s": f"{found.samples_per_s:,.0f}",
        "samples/s of computation alone": f"{found.compute_samples_per_s:,.0f}",
        "step, median and 99th percentile": f"{found.step_p50_ms:.1f} ms, {found.step_p99_ms:.1f} ms",
        "products in a step": f"{found.flops_per_step / 1e9:,.1f} GFLOP, {found.mfu:.0%} of the ceiling",
        "embedding rows moved": f"{found.embedding_gb_s:.2f} GB/s while exposed",
        "handed to collectives in a step": _megabytes(found.communicated_mb),
        "ceilings: product": f"{found.ceilings.tflops:.2f} TFLOP/s",
        "ceilings: rows gathered, copy": f"{found.ceilings.gather_gb_s:.1f} GB/s, {found.ceilings.copy_gb_s:.1f} GB/s",
    }.items():
        speed.add_row(name, value)
    yield speed
    split = Table("exposed per step", "ms", "share", title="what rank 0 does or waits for")
    total = sum(found.split_ms.values())
    for stage, ms in found.split_ms.items():
        split.add_row(stage, f"{ms:.2f}", f"{ms / total:.1%}")
    yield split
    yield (
        f"All stages: {found.split_to_step:.1%} of a step; a step under the profiler takes "
        f"{found.profiled_to_step:.1%} of one without, by their medians."
    )
    memory = Table("memory of rank 0", "GB", title="after the first steps")
    for part, gigabytes in found.memory_gb.items():
        memory.add_row(part, f"{gigabytes:.3f}")
    yield memory
