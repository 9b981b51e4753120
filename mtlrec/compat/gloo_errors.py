"""What gloo's errors mean, told by their text.

Upstream: gloo raises a plain RuntimeError both where a rank did not come to a collective in time and where a rank has
ended. torch has classes for such errors (`dist.DistBackendError`, `dist.DistNetworkError`); gloo's are none of them.
Seen in torch 2.13.
Delete when: gloo raises a class for each.
"""

from __future__ import annotations

import re

TIMED_OUT = re.compile("timed out waiting|wait timeout|(connect|application) timeout", re.IGNORECASE)
PEER_ENDED = re.compile("connection closed by peer|connection reset by peer|broken pipe", re.IGNORECASE)


def is_timeout(error: BaseException | None) -> bool:
    """Whether a rank did not come to a collective in time."""
    return isinstance(error, RuntimeError) and TIMED_OUT.search(str(error)) is not None


def is_ended_peer(error: BaseException | None) -> bool:
    """Whether another rank has ended."""
    return isinstance(error, RuntimeError) and PEER_ENDED.search(str(error)) is not None
