"""One process or many, CPU (gloo) or CUDA (NCCL): the same code from here on.

Under torchrun every attempt builds its group on a part of the store of its own (`compat/attempt_store.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mtlrec.compat.allocator import keep_freed_memory
from mtlrec.compat.attempt_store import separate_attempts
from mtlrec.compat.gloo_errors import is_ended_peer
from mtlrec.distributed.liveness import Liveness
from mtlrec.errors import ConfigError, JobFailed, PeerEnded

T = TypeVar("T")
START_S = 600
"""How long ranks wait for one another at the start."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of the job's; `store` is shared by them, `liveness` wants to hear of every step."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    store: dist.Store
    liveness: Liveness

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto", timeout_s: int = 300) -> Iterator[Ranks]:
    """Joins the job's processes (torchrun's environment; alone without it) and leaves them on every path.

    Raises RankMissing where a collective took longer than `timeout_s`, PeerEnded where another rank went away.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
    with _named_peer_errors(world_size):
        store = _store(rank, world_size)
        dist.init_process_group(
            backend="nccl" if chosen.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        with Liveness(store, rank, world_size, timeout_s) as liveness:
            try:
                yield Ranks(rank, world_size, local_world_size, chosen, store, liveness)
            finally:
                dist.destroy_process_group()


@contextmanager
def _named_peer_errors(world_size: int) -> Iterator[None]:
    """Turn what torch raises where another rank ended, or never came, into errors that say so."""
    try:
        yield
    except dist.DistStoreError as error:
        raise JobFailed(
            f"not all {world_size} ranks came within {START_S} s, or their store has ended. "
            "Check that every node was started, MASTER_ADDR and MASTER_PORT."
        ) from error
    except RuntimeError as error:
        is_peers = is_ended_peer(error) or isinstance(error, dist.DistBackendError | dist.DistNetworkError)
        if world_size > 1 and is_peers and not isinstance(error, JobFailed):
            raise PeerEnded("another rank has ended; its own message says why") from error
        raise


def restarts(ranks: Ranks) -> int:
    """Collective. How often torchrun has started the ranks again; an agent that only joined a restart counts it not."""
    count = torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), device=ranks.device)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return int(count.item())


def on_first_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Collective. Rank 0 does `work` and every rank gets what it returned.

    Where it fails, rank 0 raises its error and the others leave with status 1: a mistake that only rank 0 can see must
    not keep them waiting in the next collective.
    """
    told: list[Any] = [None, False]
    error: Exception | None = None
    if ranks.is_first:
        try:
            told[0] = work()
        except Exception as caught:
            error, told[1] = caught, True
    dist.broadcast_object_list(told)
    if error is not None:
        raise error
    if told[1]:
        raise SystemExit(1)
    result: T = told[0]
    return result


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, but torch sees no CUDA device; set train.device=cpu")
    return torch.device("cuda", local_rank)


def _store(rank: int, world_size: int) -> dist.Store:
    """Returns when all ranks have come to it: they may start minutes apart, whatever a collective may take later."""
    if world_size == 1:
        return dist.HashStore()
    timeout = timedelta(seconds=START_S)
    agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: dist.Store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not agent_has_it,
        timeout=timeout,
    )
    if agent_has_it:
        store = separate_attempts(store)
    store.set(f"mtlrec/came/{rank}", "")
    store.wait([f"mtlrec/came/{other}" for other in range(world_size)], timeout)
    return store
