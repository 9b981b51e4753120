"""A job on two ranks under TorchX that is killed again and again with SIGKILL, and ends as if nothing had been.

    python -m tests.chaos.kills --kills 200 --seed 1

Kills are drawn from the seed: a quarter inside a save, a quarter inside a backward pass, the rest between two steps or
at any moment since the start; on either rank. torchrun restarts both ranks after each. At the end tensors and the
log's numbers are compared, bit by bit, with those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.jobs import curve, final_tensors, torchx, write_job
from tests.support.ranks import run_cli, run_ranks
from tests.support.toy import write_toy

INJECT = Path(__file__).parent / "inject"
SAVE_EVERY = 5
OPERATIONS_IN_A_SAVE = 12
"""On rank 0, about; rank 1 only opens its file."""


@dataclass
class Outcome:
    tried: int
    killed: list[dict[str, Any]]
    seconds_to_recover: list[float]
    """From the kill to the end of the next attempt's first step."""
    differences: list[str]
    output: str

    def summary(self) -> str:
        kinds = ", ".join(
            f"{count} in a {where}" for where, count in sorted(Counter(k["where"] for k in self.killed).items())
        )
        took, differ = self.seconds_to_recover or [0.0], ", ".join(self.differences) or "none"
        return (
            f"{len(self.killed)} of {self.tried} kills survived ({kinds}); seconds from a kill to the next finished "
            f"step: median {statistics.median(took):.1f}, longest {max(took):.1f}; differences: {differ}"
        )


def draw(kills: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    places = [("save", "backward", "step", "moment")[index % 4] for index in range(kills)]
    rng.shuffle(places)
    return [_kill(where, rng) for where in places]


def _kill(where: str, rng: random.Random) -> dict[str, Any]:
    rank = rng.randrange(2)
    after = {
        "save": rng.randint(1, (OPERATIONS_IN_A_SAVE if rank == 0 else 1) * 3),
        "backward": rng.randint(1, 6 * SAVE_EVERY),
        "step": rng.randint(1, 6 * SAVE_EVERY),
        "moment": rng.uniform(0.1, 7.0),
    }[where]
    delay = rng.choice([0.0, rng.uniform(0.0, 0.002)]) if where == "save" else rng.uniform(0.0, 0.02)
    return {"rank": rank, "where": where, "after": after, "fraction": rng.random(), "delay_s": delay}


def survive(folder: Path, plan: list[dict[str, Any]], *overrides: str) -> Outcome:
    """Trains one job twice below `folder`, undisturbed, and killed with these overrides of the config."""
    kills = len(plan)
    (folder / "kills.json").write_text(json.dumps(plan))
    train = {"epochs": 8 + 6 * kills, "checkpoint_every": SAVE_EVERY, "eval_every": 37, "timeout_s": 60}
    config = write_job(folder / "job.yaml", write_toy(folder / "data"), train=train)
    environment = f"PYTHONPATH={INJECT},MTLREC_CHAOS={folder / 'kills.json'}"
    assert run_ranks(2, run_cli, "train", config, "-o", folder / "whole") == [0, 0]
    job = torchx(config, folder / "killed", "--max_restarts", str(kills + 5), "--env", environment, *overrides)
    try:
        output, _ = job.communicate(timeout=120 + 40 * kills)
    finally:
        job.terminate()
    if job.returncode:
        return Outcome(kills, [], [], [f"the job failed with status {job.returncode}"], output)
    log = [json.loads(line) for line in (folder / "kills.json.log").read_text().splitlines()]
    killed = [entry for entry in log if entry["event"] == "killed"]
    first_steps = [entry for entry in log if entry["event"] == "first step"]
    return Outcome(
        tried=kills,
        killed=killed,
        seconds_to_recover=[
            min(step["time"] for step in first_steps if step["attempt"] > kill["attempt"]) - kill["time"]
            for kill in killed
        ],
        differences=differences(folder / "whole", folder / "killed"),
        output=output,
    )


def differences(whole: Path, killed: Path) -> list[str]:
    """Names of tensors (model, optimizer, random state) and steps of the log that are not equal, bit by bit."""
    wanted, found = final_tensors(whole), final_tensors(killed)
    names = wanted.keys() | found.keys()
    tensors = [
        name for name in names if name not in wanted or name not in found or not torch.equal(wanted[name], found[name])
    ]
    lines = [f"step {a['step']} of the log" for a, b in zip(curve(whole), curve(killed), strict=False) if a != b]
    if len(curve(whole)) != len(curve(killed)):
        lines.append(f"{len(curve(whole))} lines of the log, then {len(curve(killed))}")
    return sorted(tensors) + lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = survive(Path(folder), draw(options.kills, options.seed))
        for kill in outcome.killed:
            print(json.dumps(kill))
        if outcome.differences:
            print(outcome.output[-5000:])
        print(f"seed {options.seed}: {outcome.summary()}")
        raise SystemExit(bool(outcome.differences) or len(outcome.killed) < outcome.tried)


if __name__ == "__main__":
    main()
