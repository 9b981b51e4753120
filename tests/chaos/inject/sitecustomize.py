"""Kills a rank from inside, at a point drawn beforehand. Python imports a file of this name when it starts, wherever
PYTHONPATH has its folder: the code under test knows nothing of it.

MTLREC_CHAOS names a JSON list of kills; attempt number n of the job (torchrun counts) takes the n-th. One is

    {"rank": 1, "where": "backward", "after": 12, "fraction": 0.4, "delay_s": 0.001}

where "moment" counts seconds since the process began; "step" backward passes that are done; "backward" passes that have
begun, and dies in front of the node of the graph that lies so far in; "save" operations on files below checkpoints/.
MTLREC_CHAOS_SIGNAL may name another signal. What happened is appended to MTLREC_CHAOS.log.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

PLAN = os.environ.get("MTLREC_CHAOS", "")
ATTEMPT = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


SIGNAL = signal.Signals[os.environ.get("MTLREC_CHAOS_SIGNAL", "SIGKILL")]
LATEST = 30
"""Backward passes after which a kill at a moment comes at once: fast machines must not finish the job before it."""


def tell(**what: Any) -> None:
    with Path(f"{PLAN}.log").open("a") as log:
        log.write(json.dumps({"attempt": ATTEMPT, "rank": int(os.environ["RANK"]), "time": time.time(), **what}) + "\n")


def die(after_s: float, **what: Any) -> None:
    def strike() -> None:
        time.sleep(after_s)
        tell(event="killed", **what)
        os.kill(os.getpid(), SIGNAL)

    if after_s:
        threading.Thread(target=strike, daemon=True).start()
    else:
        strike()


def at_a_moment(kill: dict[str, Any]) -> None:
    die(kill["after"], where="moment")


def around_backward(kill: dict[str, Any] | None) -> None:
    """Also tells when the attempt has done its first step: torch's method is wrapped in every attempt."""
    import torch

    original, passes = torch.Tensor.backward, 0

    def backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        nonlocal passes
        passes += 1
        if kill and kill["where"] == "backward" and passes == kill["after"]:
            nodes = list(graph_of(loss.grad_fn))
            node = nodes[int(kill["fraction"] * len(nodes))]
            node.register_prehook(lambda *_: die(0, where="backward", at=node.name(), nodes=len(nodes)))
        original(loss, *args, **kwargs)
        if passes == 1:
            tell(event="first step")
        if kill and kill["where"] == "step" and passes == kill["after"]:
            die(kill["delay_s"], where="step")
        if kill and kill["where"] == "moment" and passes == LATEST:
            die(0, where="moment")

    torch.Tensor.backward = backward  # type: ignore[method-assign]


def graph_of(root: Any) -> Any:
    seen, left = set(), [root]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            left += [following for following, _ in node.next_functions]


def in_a_save(kill: dict[str, Any]) -> None:
    """Opening for writing, making, renaming, removing: what Python tells its auditors of a path below checkpoints/."""
    operations, busy = 0, False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal operations, busy
        if busy or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")):
            return
        path = str(arguments[0])
        if "/checkpoints/" not in path:
            return
        operations += 1
        if operations == kill["after"]:
            busy = True
            die(kill["delay_s"], where="save", at=f"{event} {path.partition('/checkpoints/')[2]}")

    sys.addaudithook(audit)


def main() -> None:
    kill = dict(enumerate(json.loads(Path(PLAN).read_text()))).get(ATTEMPT)
    if kill and kill["rank"] != int(os.environ["RANK"]):
        kill = None
    if kill and kill["where"] == "moment":
        at_a_moment(kill)
    if kill and kill["where"] == "save":
        in_a_save(kill)
    around_backward(kill)


if PLAN and "RANK" in os.environ and os.path.exists(PLAN):
    main()
