"""Boolean expressions over tasks and columns: what a task's `space` says.

    click                          a 0/1 task or column
    click and not bounced
    watch_time > 3 or (like and 1 <= rating < 4)
    "is-shown" == 1                a name that is no word is quoted

Python's own parser reads the text; nothing is evaluated, and what is not in the grammar above is refused. The result is
a tree of plain tuples, which the losses take as it is:

    ("and", tree, ...)   ("or", tree, ...)   ("not", tree)   ("holds", name)   (">", name, 3.0)
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

Tree = tuple[Any, ...]
LONGEST = 1000
LARGEST = 2.0**24
"""Labels are float32: beyond it, neighboring whole numbers are the same."""
QUOTE = "a name that is no word is quoted: space: '\"is-shown\"'"
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
ELSEWHERE = {
    "&&": "and",
    "&": "and",
    "AND": "and",
    "||": "or",
    "|": "or",
    "OR": "or",
    "NOT": "not",
    "!": "not",
    "=": "==",
}
"""How other languages write it."""
MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def parse(text: str) -> Tree:
    """Raises ValueError with one line that shows what is wrong."""
    if len(text) > LONGEST:
        raise ValueError(f"is {len(text)} characters long; {LONGEST} are the most")
    if "#" in text:
        raise ValueError("holds a '#', behind which Python reads nothing; leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python has opinions on `1 < 2 is 3`
            expression = ast.parse(text.strip(), mode="eval").body
        return _tree(expression, text.strip())
    except (SyntaxError, UnicodeError, RecursionError, MemoryError) as error:
        at = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ValueError(f"is no expression{at}; {_remedy(text)}") from None


def names(tree: Tree) -> Iterator[str]:
    """Every task or column the expression reads, as often as it stands there."""
    for leaf in _leaves(tree):
        yield leaf[1]


def flags(tree: Tree) -> set[str]:
    """Those that stand alone and must therefore be 0 or 1."""
    return {leaf[1] for leaf in _leaves(tree) if leaf[0] == "holds"}


def renamed(tree: Tree, source: Callable[[str], Any]) -> Tree:
    """The same tree with `source(name)` in place of every name."""
    if tree[0] in ("and", "or", "not"):
        return (tree[0], *(renamed(part, source) for part in tree[1:]))
    return (tree[0], source(tree[1]), *tree[2:])


def _leaves(tree: Tree) -> Iterator[Tree]:
    if tree[0] in ("and", "or", "not"):
        for part in tree[1:]:
            yield from _leaves(part)
    else:
        yield tree


def _tree(node: ast.expr, text: str) -> Tree:
    match node:
        case ast.BoolOp(op=op, values=values):
            return ("and" if isinstance(op, ast.And) else "or", *(_tree(value, text) for value in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ("not", _tree(operand, text))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            sides = [left, *rights]
            pairs = [_comparison(*pair, text) for pair in zip(sides, ops, rights, strict=False)]
            return pairs[0] if len(pairs) == 1 else ("and", *pairs)
    name = _name(node)
    if name is None:
        what = f"{_shown(node, text)} is neither a task, a column nor a comparison of one with a number"
        raise ValueError(f"{what}; {_remedy(text)}")
    return ("holds", name)


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Tree:
    sign = COMPARISONS.get(type(op))
    if sign is None:
        raise ValueError(f"{_shown(right, text)} is compared by a word; take ==, !=, <, <=, > or >=")
    for this, other, as_written in ((left, right, sign), (right, left, MIRRORED[sign])):
        name, number = _name(this), _number(other)
        if name is not None and number is not None:
            return (as_written, name, number)
    shown = f"{_shown(left, text)} {sign} {_shown(right, text)}"
    if _name(left) is not None and _name(right) is not None:
        raise ValueError(f"{shown} compares two names; one side must be a number")
    raise ValueError(f"{shown}: compare a task or a column with a number of at most {LARGEST:.0f}")


def _name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str(name)):
            return name
    return None


def _number(node: ast.expr) -> float | None:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _number(operand)
            return None if number is None else -number
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and abs(value) <= LARGEST:
            return float(value)
    return None


def _remedy(text: str) -> str:
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", text)
    foreign = re.search(r"&&?|\|\|?|\b(?:AND|OR|NOT)\b|!(?!=)|(?<![=<>!])=(?!=)", unquoted)
    if foreign is not None:
        return f"write '{ELSEWHERE[foreign[0]]}' for '{foreign[0]}'"
    return f"write for example: click and not (bounced or watch_time < 3); {QUOTE}"


def _shown(node: ast.expr, text: str) -> str:
    return f"'{' '.join((ast.get_source_segment(text, node) or '').split())}'"
