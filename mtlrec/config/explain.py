"""What is wrong with a job, in one line for each mistake.

A pydantic error knows the path of the bad key; the YAML's node tree knows on which line that path stands. Put together:

    job.yaml:12: tasks.1.given = 'klick': no such task; tasks are click, long_view
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mtlrec.config.base import without_secrets
from mtlrec.config.job import JobConfig
from mtlrec.config.kinds.family import Family
from mtlrec.errors import LocatedError

Key = str | int
"""A step of a path through the YAML: a mapping's key or a list's index."""


def describe(error: ValidationError, tree: Any, written: Any, root: yaml.Node | None, where: str) -> list[str]:
    """A line for each mistake. `tree` is the job as plain values; `written` and `root` are the file `where` without
    overrides, as values and as nodes: a value that stands in the tree only came from --set.

    A value that several types could take has an error for each of them: the one that got furthest into it counts.
    """
    located = [(_path(entry, tree), entry) for entry in error.errors()]
    paths = [path for path, _ in located]
    lines = []
    for index, (path, entry) in enumerate(located):
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
        if path not in paths[:index] and not (deeper and path):
            from_set = _lookup(tree, path) != _lookup(written, path)
            lines.append(_line_of(entry, path, tree, None if from_set else root, "--set" if from_set else where))
    return lines


def _path(entry: Any, tree: Any) -> tuple[Key, ...]:
    cause = (entry.get("ctx") or {}).get("error")
    path = _in_the_yaml(entry["loc"], tree)
    if isinstance(cause, LocatedError):
        return (*path, *cause.path)
    return (*path, "kind") if entry["type"] in ("union_tag_invalid", "kind") else path


def _line_of(entry: Any, path: Sequence[Key], tree: Any, root: yaml.Node | None, where: str) -> str:
    cause = (entry.get("ctx") or {}).get("error")
    message = str(cause) if isinstance(cause, ValueError) else _plain(entry, path, tree)
    return line_of(path, message, tree, root, where)


def line_of(path: Sequence[Key], message: str, tree: Any, root: yaml.Node | None, where: str) -> str:
    """The line that says what is wrong with the key at `path`."""
    key = ".".join(str(step) for step in path) or "job"
    value = _lookup(tree, path)
    shown = (
        ""
        if (isinstance(value, dict | list) and len(str(value)) > 60) or value is None
        else f" = {without_secrets(repr(value))}"
    )
    line = _line(root, path)
    return f"{where}{f':{line}' if line else ''}: {key}{shown}: {message}"


def _plain(error: Any, path: Sequence[Key], tree: Any) -> str:
    if error["type"] == "extra_forbidden":
        siblings = _allowed_keys(path, tree)
        return "unknown key" + (f"; allowed are {', '.join(siblings)}" if siblings else "")
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "union_tag_invalid":
        return f"unknown kind; allowed are {error['ctx']['expected_tags'].replace(chr(39), '')}"
    if error["type"] == "union_tag_not_found":
        return "needs a kind"
    if error["type"] == "kind":
        return str(error["msg"])
    if error["type"] == "too_short":
        return "must not be empty"
    message = str(error["msg"])
    return message[0].lower() + message[1:]


def _allowed_keys(path: Sequence[Key], tree: Any) -> list[str]:
    """The keys of the section that the path's last key stands in; of a union, those of the kind that was chosen."""
    models = models_at(path[:-1], tree)
    return list(models[0].model_fields) if len(models) == 1 else []


def models_at(path: Sequence[Key], tree: Any) -> list[type[BaseModel]]:
    """The classes a section may have: one, or where kinds are to be chosen from and none is, all of them."""
    models: list[Any] = [JobConfig]
    for step in path:
        tree = _child(tree, step)
        if len(models) == 1 and step in getattr(models[0], "model_fields", ()):
            field = models[0].model_fields[str(step)]
            models = [marker for marker in field.metadata if isinstance(marker, Family)] or _models_in(field.annotation)
        if isinstance(tree, dict):
            models = _chosen(models, tree.get("kind"))
    return _chosen(models, None)


def _models_in(annotation: Any) -> list[Any]:
    """The classes of sections that a type allows, and families of them."""
    if isinstance(annotation, Family) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return [annotation]
    arguments = get_args(annotation)
    families = [argument for argument in arguments if isinstance(argument, Family)]
    return families or [model for argument in arguments for model in _models_in(argument)]


def _chosen(models: Sequence[Any], kind: Any) -> list[type[BaseModel]]:
    """The classes of this kind; without one the default's, or all."""
    classes = [
        each for model in models for each in (_classes_of(model, kind) if isinstance(model, Family) else [model])
    ]
    of_kind = [one for one in classes if is_kind(one, kind)]
    return of_kind or [one for one in classes if kind is None and _is_default(one)] or classes


def _classes_of(family: Family, kind: Any) -> list[type[BaseModel]]:
    try:
        return [family.config_class(str(kind or family.default))]
    except ValueError:
        return [family.config_class(known) for known in family.kinds]


def _is_default(model: type[BaseModel]) -> bool:
    """Whether it is the kind that a section has which names none."""
    return "kind" in model.model_fields and isinstance(model.model_fields["kind"].default, str)


def is_kind(model: type[BaseModel], kind: Any) -> bool:
    return "kind" in model.model_fields and kind in get_args(model.model_fields["kind"].annotation)


def _in_the_yaml(loc: Sequence[Key], tree: Any) -> tuple[Key, ...]:
    """Pydantic puts a union's tag or a member type's name into the path; the YAML does not have it there."""
    path: list[Key] = []
    for position, step in enumerate(loc):
        is_there = _child(tree, step) is not None or (isinstance(tree, dict) and step in tree)
        is_missing = isinstance(tree, dict) and position == len(loc) - 1
        if is_there or is_missing:
            path.append(step)
            tree = _child(tree, step)
    return tuple(path)


def _child(node: Any, step: Key) -> Any:
    if isinstance(node, dict):
        return node.get(step)
    if isinstance(node, list) and isinstance(step, int) and step < len(node):
        return node[step]
    return None


def _lookup(tree: Any, path: Sequence[Key]) -> Any:
    for step in path:
        tree = _child(tree, step)
    return tree


def _line(node: yaml.Node | None, path: Sequence[Key]) -> int | None:
    """1-based line of the deepest node on the path that the file has (a key from --set has none of its own)."""
    line: int | None = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(step)]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line
