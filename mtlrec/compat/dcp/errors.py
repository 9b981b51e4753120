"""What went wrong in a DCP save or load.

Upstream: `torch.distributed.checkpoint` raises one class, `CheckpointException`, for everything that a rank may meet.
It is a BaseException, which an `except Exception` misses. A checkpoint of another model has no class of its own: only
the texts "Missing key in checkpoint state_dict" and "Size mismatch" tell. Seen in torch 2.13.
Delete when: DCP raises an Exception, and one of its own for keys and sizes that do not match.
"""

from __future__ import annotations

from torch.distributed.checkpoint.api import CheckpointException

from mtlrec.io import one_line

__all__ = ["CheckpointException", "failure_reason", "is_of_another_model"]


def failure_reason(error: CheckpointException) -> str:
    """What the ranks' errors say, in one line."""
    reasons = dict.fromkeys(str(failure[0]) or repr(failure[0]) for failure in error.failures.values())
    return one_line("; ".join(reasons), 300)


def is_of_another_model(reason: str) -> bool:
    """Whether a load failed because names or sizes differ from those that were saved."""
    return "Missing key" in reason or "ize mismatch" in reason
