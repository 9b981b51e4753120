"""Runs a function on several ranks of a gloo group on loopback, and brings what each returned back."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: int = 240) -> list[Any]:
    """`function(*args)` on every rank, under torchrun's environment; it builds its own process group.

    What it returns must be picklable. A rank's exception is raised here with its traceback.
    """
    context = mp.get_context("spawn")
    results = context.Queue()
    port = free_port()
    workers = [
        context.Process(target=_rank, args=(rank, world_size, port, function, args, results), daemon=True)
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    returned: dict[int, Any] = {}
    try:
        for _ in workers:
            rank, value, error = results.get(timeout=timeout_s)
            if error:
                raise AssertionError(f"rank {rank} failed:\n{error}")
            returned[rank] = value
    finally:
        for worker in workers:
            worker.join(timeout=10 if len(returned) == world_size else 0.1)
            if worker.is_alive():
                worker.kill()
    return [returned[rank] for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...], results: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        results.put((rank, function(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_cli(*arguments: str | Path) -> int:
    """The `mtlrec` command in this process; its exit status."""
    from mtlrec.cli.main import app, run_command

    return run_command(lambda: app([str(argument) for argument in arguments]))
