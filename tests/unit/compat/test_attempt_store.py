"""torch's own rendezvous still gives every attempt of torchrun the same store."""

import pytest
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mtlrec.compat.attempt_store import separate_attempts


@pytest.fixture
def agent_store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """The environment of a rank under torchrun, and the store of its agent."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    settings = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in (settings | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    return store


def test_the_next_attempt_reads_what_the_last_one_wrote(
    agent_store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        stores.append(next(iter(rendezvous("env://")))[0])
    stores[0].set("address", "of a rank that has ended")
    stores[0].get("address")  # `set` does not wait for the store
    assert stores[1].check(["address"]), "compat/attempt_store.py can be deleted"


def test_attempts_are_separate(agent_store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    separate_attempts(agent_store).set("address", "of a rank that has ended")
    assert separate_attempts(agent_store).check(["address"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not separate_attempts(agent_store).check(["address"])
