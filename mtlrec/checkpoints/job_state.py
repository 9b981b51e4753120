"""What a checkpoint keeps beside its tensors: how far the job was, and which job it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtlrec.data.order import Position
from mtlrec.distributed.plans import Plan
from mtlrec.errors import CheckpointError
from mtlrec.io import one_line
from mtlrec.run_folder import JOB_STATE


@dataclass(frozen=True)
class JobState:
    """What is saved beside the tensors, as JSON: steps done, the position in the data and what it counts in, and what
    the features' ids hang on (`Loader.id_fingerprints`)."""

    step: int
    position: Position
    files: str
    ranks: int
    id_fingerprints: dict[str, str]
    config: dict[str, Any]
    plan: Plan

    def text(self) -> str:
        return json.dumps(asdict(self) | {"plan": self.plan.dump()}, indent=1)


def read_job_state(checkpoint: Path) -> JobState:
    try:
        raw = json.loads((checkpoint / JOB_STATE).read_text(encoding="utf-8"))
        position, plan = Position.of(raw.pop("position")), Plan.model_validate(raw.pop("plan"))
        return JobState(position=position, plan=plan, **raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / 'job.json'}: not the state of a job ({one_line(repr(error))})") from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Of two dumped configs: `train.epochs 6, now 2`, a line for every key."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        one, other, name = before.get(key), now.get(key), f"{prefix}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif one != other:
            found.append(f"{name} {_short(one)}, now {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_tasks(checkpoint: Path, saved: JobState, names: Sequence[str]) -> None:
    """Raises CheckpointError unless the tasks are the checkpoint's, in its order: experts are kept by position."""
    before = [str(task["name"]) for task in saved.config["tasks"]]
    if before != list(names):
        raise CheckpointError(
            f"{checkpoint}: its tasks are {', '.join(before)}, the job's {', '.join(names)}; name the same in the same "
            "order, or start a new run with --init-from, which moves weights by name"
        )
