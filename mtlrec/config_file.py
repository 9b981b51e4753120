"""Reading a job: YAML file or recipe name, `--set` overrides, and errors of one line.

A pydantic error knows the path of the bad key; the YAML's node tree knows on which line that path stands. Put together:

    job.yaml:12: tasks.1.given = 'klick': no such task; tasks are click, long_view
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mtlrec import config as schema
from mtlrec.config import JobConfig, LocatedError

Key = str | int
"""A step of a path through the YAML: a mapping's key or a list's index."""


class ConfigError(ValueError):
    """The user's mistake, in one line."""


def recipes() -> list[str]:
    """Names of the jobs that ship with the package: DATASET_FUSION."""
    return sorted(_recipe_texts())


def recipe_text(name: str) -> str:
    texts = _recipe_texts()
    if name not in texts:
        raise ConfigError(f"'{name}' is neither a file nor a recipe; recipes are {', '.join(sorted(texts))}")
    return texts[name]


def _recipe_texts() -> dict[str, str]:
    """A file of recipes is a job with `$kind` and `$fusion` in it, then, as a second document, the fusion layers."""
    texts = {}
    for entry in resources.files("mtlrec.recipes").iterdir():
        if entry.name.endswith(".yaml"):
            job, _, fusions = entry.read_text(encoding="utf-8").partition("\n---\n")
            for kind, fusion in yaml.safe_load(fusions).items():
                flow = yaml.safe_dump(fusion, default_flow_style=True, sort_keys=False, width=1000).strip()
                texts[f"{entry.name.removesuffix('.yaml')}_{kind}"] = (
                    Template(job).substitute(kind=kind, fusion=flow) + "\n"
                )
    return texts


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Reads a job from a YAML file or a recipe's name and applies `key.path=value` overrides.

    Raises ConfigError with one line per mistake: file and line, key, value, what is allowed.
    """
    path = Path(source)
    is_file = path.suffix in (".yaml", ".yml") or path.is_file()
    if is_file and not path.is_file():
        raise ConfigError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8") if is_file else recipe_text(str(source))
    return parse_config(text, str(path) if is_file else f"recipe {source}", overrides)


def parse_config(text: str, where: str = "config", overrides: Sequence[str] = ()) -> JobConfig:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: a job is a mapping (name, data, tables, features, tasks, model, ...)")
    for override in overrides:
        apply_override(tree, override)
    try:
        return JobConfig.model_validate(tree)
    except ValidationError as error:
        lines = [_describe(entry, tree, root, where) for entry in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


# ---- overrides


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.c=value` in place; a list's item is named by its index or by its `name`."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: write key.path=value, for example --set train.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    node: Any = tree
    keys = dotted.split(".")
    for key in keys[:-1]:
        node = _step(node, key, override)
    if isinstance(node, list):
        node[_index(node, keys[-1], override)] = value
        return
    if keys[-1] == "kind" and node.get("kind") != value:
        _drop_keys_of_the_old_kind(node, keys[:-1], value)
    node[keys[-1]] = value


def _step(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, override)]
    child = node.setdefault(key, {})
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override}: '{key}' holds {child!r}, not further keys")
    return child


def _index(items: list[Any], key: str, override: str) -> int:
    for index, item in enumerate(items):
        if str(index) == key or (isinstance(item, dict) and item.get("name") == key):
            return index
    names = [str(item.get("name", i)) if isinstance(item, dict) else str(i) for i, item in enumerate(items)]
    raise ConfigError(f"--set {override}: no item '{key}'; there are {', '.join(names)}")


def _drop_keys_of_the_old_kind(node: dict[str, Any], path: Sequence[str], kind: Any) -> None:
    """`--set model.fusion.kind=mmoe` on an AdaTT job keeps what MMoE also knows and forgets the rest."""
    field = {"bottom": schema.Bottom, "fusion": schema.Fusion, "heads": schema.Heads}.get(path[-1] if path else "")
    for option in _models_in(field):
        if _is_kind(option, kind):
            for key in [key for key in node if key not in option.model_fields]:
                del node[key]


# ---- errors


def _describe(error: Any, tree: Any, root: yaml.Node | None, where: str) -> str:
    cause = (error.get("ctx") or {}).get("error")
    path: tuple[Key, ...] = cause.path if isinstance(cause, LocatedError) else _without_tags(error["loc"], tree)
    message = str(cause) if isinstance(cause, ValueError) else _plain(error, path, tree)
    key = ".".join(str(step) for step in path) or "job"
    value = _lookup(tree, path)
    shown = "" if (isinstance(value, dict | list) and len(str(value)) > 60) or value is None else f" = {value!r}"
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
    if error["type"] == "too_short":
        return "must not be empty"
    message = str(error["msg"])
    return message[0].lower() + message[1:]


def _allowed_keys(path: Sequence[Key], tree: Any) -> list[str]:
    """The keys of the section that the path's last key stands in; of a union, those of the kind that was chosen."""
    model: type[BaseModel] | None = JobConfig
    candidates: list[type[BaseModel]] = []
    for step in path[:-1]:
        tree = _child(tree, step)
        if model is not None and step in model.model_fields:
            candidates = _models_in(model.model_fields[str(step)].annotation)
        kind = tree.get("kind") if isinstance(tree, dict) else None
        chosen = [one for one in candidates if kind is None or _is_kind(one, kind)] or candidates
        model = chosen[0] if len(chosen) == 1 else None
    return [] if model is None else list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _is_kind(model: type[BaseModel], kind: Any) -> bool:
    return "kind" in model.model_fields and kind in get_args(model.model_fields["kind"].annotation)


def _without_tags(loc: Sequence[Key], tree: Any) -> tuple[Key, ...]:
    """Pydantic puts a union's tag (or a member type's name) into the path; the YAML does not have it there."""
    path: list[Key] = []
    node = tree
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(node, dict) and step not in node and not last and step == node.get("kind"):
            continue
        if not isinstance(node, dict | list):
            break
        path.append(step)
        node = _child(node, step)
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
