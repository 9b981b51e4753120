"""Which rows a boolean expression over labels and columns admits, where values may be unknown.

A condition is a tree of tuples: `("and", tree, ...)`, `("or", tree, ...)`, `("not", tree)`, and the leaves
`("holds", source)` (the value is 1) and `(">", source, 3.0)` (or ==, !=, <, <=, >=). What a source is, is up to the
caller. Logic has three values (Kleene): `a or b` is true where a is, even if b is unknown; `not a` is unknown where a
is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

Condition = tuple[Any, ...]
COMPARISONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def evaluate(condition: Condition, read: Callable[[Any], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(surely true, surely false), [B] bool each; neither where the answer hangs on what is unknown.

    `read(source)` gives values [B] and whether they are known [B].

    Example:
        >>> values, known = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
        >>> evaluate(("not", ("holds", "click")), lambda source: (values, known))
        (tensor([False,  True, False]), tensor([ True, False, False]))
    """
    match condition:
        case ("not", inner):
            true, false = evaluate(inner, read)
            return false, true
        case ("and" | "or" as word, *parts):
            trues, falses = zip(*(evaluate(part, read) for part in parts), strict=True)
            if word == "and":
                return reduce(torch.logical_and, trues), reduce(torch.logical_or, falses)
            return reduce(torch.logical_or, trues), reduce(torch.logical_and, falses)
        case ("holds", source):
            return evaluate(("==", source, 1.0), read)
        case (sign, source, number):
            values, known = read(source)
            holds, is_known = COMPARISONS[sign](values, number), known > 0
            return holds & is_known, ~holds & is_known
    raise ValueError(f"{condition!r} is no condition")
