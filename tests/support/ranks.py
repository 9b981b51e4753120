"""Run a function on several ranks of a gloo group on loopback, and bring back what each returned.

Ranks are forked from a server that has imported torch, TorchRec and FBGEMM: an import of these takes five seconds.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any

# Everything that ranks import. The server must not have a thread or a process group: see test_ranks.py.
PRELOADED = [
    "torch",
    "torchrec",
    "fbgemm_gpu",
    "torchrec.distributed.model_parallel",
    "torchrec.distributed.train_pipeline",
    "torch.utils.tensorboard",
    "torch.distributed.checkpoint",
    "pyarrow.parquet",
    "mtlrec.cli.main",
    "mtlrec.training.saving",
    "mtlrec.evaluation.callback",
    "mtlrec.diagnosis.callback",
    "mtlrec.evaluation.predict",
]
WITHOUT_THREAD = "JE_ARROW_MALLOC_CONF"
"""Arrow's options of jemalloc."""
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


def start_server() -> None:
    """Start the server unless it runs. Its Arrow allocates memory without a background thread."""
    before = os.environ.get(WITHOUT_THREAD)
    os.environ[WITHOUT_THREAD] = "background_thread:false"
    try:
        forkserver.ensure_running()
    finally:
        del os.environ[WITHOUT_THREAD]
        if before is not None:
            os.environ[WITHOUT_THREAD] = before


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: int = 240) -> list[Any]:
    """`function(*args)` on every rank, under torchrun's environment; it builds its own process group.

    What it returns must be picklable. A rank's exception is raised here with its traceback.
    """
    start_server()
    results = context.Queue()
    call = pickle.dumps((function, args))  # by value: a process takes at most 256 descriptors, and a tensor is one
    port = free_port()
    workers = [
        context.Process(
            target=_rank,
            args=(rank, world_size, port, dict(os.environ), (Inherited(1), Inherited(2)), call, results),
            daemon=True,
        )
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
    rank: int,
    world_size: int,
    port: int,
    environment: dict[str, str],
    outputs: tuple[int, int],
    call: bytes,
    results: Any,
) -> None:
    os.environ.clear()  # the server's is that of the first test
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for number, descriptor in enumerate(outputs, 1):  # the server's own belong to a test that is over
        os.dup2(descriptor, number)
    try:
        function, args = pickle.loads(call)
        results.put((rank, function(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


class Inherited:
    """A file descriptor of this process, which arrives in the other one as a number of its own."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Any]]:
        return _detached, (reduction.DupFd(self.descriptor),)


def _detached(duplicate: Any) -> int:
    return int(duplicate.detach())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_cli(*arguments: str | Path) -> int:
    """The `mtlrec` command in this process; its exit status."""
    from mtlrec.cli.main import app, run_command

    return run_command(lambda: app([str(argument) for argument in arguments]))
