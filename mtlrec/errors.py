"""Every error class of mtlrec.

    UserError     the user can put it right: a job, files, options. The command prints one line and ends with status 2.
    JobFailed     the job was right and could not go on: one line, status 1.
    all others    a bug. The command keeps the traceback, says where to report it, and ends with status 1.

`layers/`, `heads/` and `losses/` know no config and raise plain ValueErrors; `models/build.py`, where a config becomes
modules, turns these into a ConfigError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class UserError(ValueError):
    """A mistake that the user can put right. The message names the key, file, row or task, and the remedy."""


class ConfigError(UserError):
    """A key of the job, or an option of the command, has a value that cannot be used."""


class DataError(UserError):
    """The user's files cannot be used. Names the file, and where known the row group, row, column and value."""


class CheckpointError(UserError):
    """A checkpoint cannot be used. The message names it."""


class ArtifactError(UserError):
    """A serving artifact cannot be made or used."""


class LocatedError(ValueError):
    """A rule that spans several keys was broken. For validators of the config: pydantic takes ValueErrors only.

    Args:
        path: the key to blame, from the section that raises it
    """

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.path = tuple(path)


class JobFailed(RuntimeError):
    """A job that was right could not go on. The message says what happened and what is left."""


class NonFiniteError(JobFailed):
    """A loss or an output became NaN or infinite. Names the tasks and the files of the rows."""


class CheckpointNotSaved(JobFailed):
    """A checkpoint could not be written. Those before it are complete."""


class RankMissing(JobFailed):
    """A collective took longer than `train.timeout_s`. Says where every rank stood."""


class PeerEnded(JobFailed):
    """Another rank ended while this one was talking to it. That rank's own message says why."""


class ParityError(JobFailed):
    """An exported model does not give its checkpoint's predictions.

    Args:
        parity: the measured differences, a `mtlrec.serving.parity.Parity`
    """

    def __init__(self, message: str, parity: Any) -> None:
        super().__init__(message)
        self.parity = parity


class TrialFailed(JobFailed):
    """A training of a comparison ended neither as planned nor by diverging."""


class Preempted(Exception):
    """The job saved and stopped because SIGTERM or Ctrl-C asked it to.

    Args:
        step: the last step that was taken
        interrupted: whether Ctrl-C asked
    """

    def __init__(self, step: int, interrupted: bool = False) -> None:
        asked = "Ctrl-C" if interrupted else "SIGTERM"
        super().__init__(f"stopped after step {step} as {asked} asked; --resume goes on from there")
        self.step, self.interrupted = step, interrupted
