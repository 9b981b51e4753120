"""What the verbs have in common: libraries keep quiet while one runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from mtlrec.compat.quiet import quiet_call

P = ParamSpec("P")
T = TypeVar("T")


def quiet(verb: Callable[P, T]) -> Callable[P, T]:
    """Hide what torch and TorchRec warn of that a user can do nothing about, for as long as the verb runs."""

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with quiet_call():
            return verb(*args, **kwargs)

    return call
