"""Expressions against Python's own evaluation of the same text, and everything that is no expression."""

import itertools

import numpy as np
import pytest

from mtlrec.config.expression import flags, names, parse, renamed
from mtlrec.data.features.conditions import rows_where

READS = ["a", "b", "n"]


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "not a",
        "a and b",
        "a or b and not a",
        "(a or b) and n > 2",
        "not (a and b) or n <= -1.5",
        "0 <= n < 3",
        "3 > n",
        "n != 2 and not not a",
        "a == 1 or n == 3",
        "  a\n",
    ],
)
def test_an_expression_says_what_python_would(text: str) -> None:
    rows = list(itertools.product([0.0, 1.0], [0.0, 1.0], [-2.0, 0.0, 2.0, 3.0]))
    columns = dict(zip(READS, np.float32(rows).T, strict=True))
    expected = [bool(eval(text.strip(), {}, dict(zip(READS, row, strict=True)))) for row in rows]
    for known in (None, np.ones(len(rows), bool)):
        read = lambda name, known=known: (columns[name], known)  # noqa: E731
        assert rows_where(parse(text), read).tolist() == expected
        assert rows_where(parse(text), read, is_true=False).tolist() == [not one for one in expected]


@pytest.mark.parametrize("text", ["a and b", "a or b", "not a", "not (a or not b)", "a and n > 1", "n < 1 or n >= 1"])
def test_what_is_unknown_decides_nothing_that_hangs_on_it(text: str) -> None:
    """Kleene's logic: surely true is what holds however the unknown values turn out."""
    values = {"a": [0.0, 1.0], "b": [0.0, 1.0], "n": [0.0, 2.0]}
    for known in itertools.product([False, True], repeat=3):
        for row in itertools.product(*values.values()):
            given = dict(zip(READS, zip(row, known, strict=True), strict=True))
            columns = {name: (np.float32([v]), np.array([k])) for name, (v, k) in given.items()}
            true, false = (rows_where(parse(text), columns.__getitem__, is_true) for is_true in (True, False))
            worlds = itertools.product(*([v] if k else values[name] for name, (v, k) in given.items()))
            turns_out = {bool(eval(text, {}, dict(zip(READS, world, strict=True)))) for world in worlds}
            if text != "n < 1 or n >= 1":  # a tautology is not seen through
                assert true.item() == (turns_out == {True})
                assert false.item() == (turns_out == {False})
            elif known[2]:
                assert true.item()


def test_names_and_flags() -> None:
    tree = parse('a and not ("is-shown" or n > 3) and 1 < n and b')
    assert list(names(tree)) == ["a", "is-shown", "n", "n", "b"]
    assert flags(tree) == {"a", "is-shown", "b"}
    assert renamed(parse("a and n >= -2"), lambda name: ("column", READS.index(name))) == (
        "and",
        ("holds", ("column", 0)),
        (">=", ("column", 2), -2.0),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no expression"),
        ("a and", "is no expression"),
        ("a and )", "is no expression at character"),
        ("a = 1", "is no expression.*; write '==' for '='"),
        ("a & b", "'a & b' is neither.*; write 'and' for '&'"),
        ("a || b", "write 'or' for '||'".replace("|", r"\|")),
        ("a AND b", "write 'and' for 'AND'"),
        ("!a", "write 'not' for '!'"),
        ("n > m", "'n' > 'm' compares two names; one side must be a number"),
        ("a # and b", "holds a '#'"),
        ("\ud800", "is no expression"),
        ("f(a)", r"'f\(a\)' is neither"),
        ("a.b", "'a.b' is neither"),
        ("a[0]", "is neither"),
        ("3", "'3' is neither"),
        ("True", "'True' is neither"),
        ("lambda: a", "is neither"),
        ("a if b else n", "is neither"),
        ("a in b", "'b' is compared by a word"),
        ("a is 1", "'1' is compared by a word"),
        ("a < b", "'a' < 'b' compares two names; one side must be a number"),
        ("1 < 2", "compare a task or a column with a number"),
        ("a > True", "compare a task or a column with a number"),
        ("a > 1e999", "compare a task or a column with a number"),
        ("a > 1" + "0" * 400, "compare a task or a column with a number"),
        ("n == 16777217", "with a number of at most 16777216"),
        ("is-shown", "is no expression .* a name that is no word is quoted"),
        ("(a\n + b)", r"'a \+ b' is neither"),
        ("a == 1j", "compare a task or a column with a number"),
        ("(" * 500 + "a" + ")" * 500, "is 1001 characters long"),
        ("(" * 450 + "a" + ")" * 450, "is no expression"),
        ("not " * 249 + "a", None),
    ],
)
def test_what_is_refused(text: str, complaint: str | None) -> None:
    if complaint is None:
        assert parse(text)[0] == "not"
        return
    with pytest.raises(ValueError, match=complaint) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
