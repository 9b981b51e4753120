"""Task weights over time."""

from __future__ import annotations

from collections.abc import Sequence


def decayed_weights(initial: Sequence[float], rate: Sequence[float], time: int) -> list[float]:
    """w_k(t) = w_k0 * rate_k ** t (Tang et al., RecSys 2020, section 4.3), t counted in epochs or steps."""
    return [first * gamma**time for first, gamma in zip(initial, rate, strict=True)]
