"""Which rows satisfy a boolean expression over labels and columns, where values may be unknown.

A condition is a tree of tuples (`config/expression.py`): `("and", tree, ...)`, `("or", tree, ...)`, `("not", tree)`,
and the leaves `("holds", source)` (the value is 1) and `(">", source, 3.0)` (or ==, !=, <, <=, >=). The caller says
what a source is. Logic has three values (Kleene): `a or b` is true where a is, even if b is unknown; `not a` is unknown
where a is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

Condition = tuple[Any, ...]
Read = Callable[[Any], tuple[np.ndarray, np.ndarray | None]]
"""source -> its values [N], and whether they are known [N] bool, or None for all."""
COMPARISONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def rows_where(condition: Condition, read: Read, is_true: bool = True) -> np.ndarray:
    """[N] bool: the rows where the condition is surely true, or with `is_true=False` surely false.

    Example:
        >>> values, known = np.array([1.0, 0.0, 0.0]), np.array([True, True, False])
        >>> rows_where(("not", ("holds", "click")), lambda source: (values, known))
        array([False,  True, False])
    """
    match condition:
        case ("not", inner):
            return rows_where(inner, read, not is_true)
        case ("and" | "or" as word, *parts):
            joined = np.logical_and if (word == "and") == is_true else np.logical_or
            return reduce(joined, (rows_where(part, read, is_true) for part in parts))
        case ("holds", source):
            return rows_where(("==", source, 1.0), read, is_true)
        case (sign, source, number):
            values, known = read(source)
            holds = COMPARISONS[sign](values, number)
            rows = holds if is_true else ~holds
            return rows if known is None else rows & known
    raise ValueError(f"{condition!r} is no condition")
