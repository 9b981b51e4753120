"""Reading a job: a YAML file or a recipe's name, and `--set` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mtlrec.config.explain import describe, is_kind, line_of, models_at
from mtlrec.config.job import STATISTICS_TO_COME, JobConfig
from mtlrec.config.statistics import fill_in
from mtlrec.errors import ConfigError, LocatedError
from mtlrec.run_folder import RunFolder


def recipes() -> list[str]:
    """Names of the jobs that ship with the package: one for each data set."""
    return sorted(_recipe_texts())


def recipe_text(name: str) -> str:
    texts = _recipe_texts()
    if name not in texts:
        raise ConfigError(f"'{name}' is neither a file nor a recipe; recipes are {', '.join(sorted(texts))}")
    return texts[name]


def _recipe_texts() -> dict[str, str]:
    files = [entry for entry in resources.files("mtlrec.recipes").iterdir() if entry.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def load_config(source: str | Path, overrides: Sequence[str] = (), statistics_to_come: bool = False) -> JobConfig:
    """Reads a job from a YAML file or a recipe's name and applies `key.path=value` overrides.

    With `statistics_to_come` the job may leave open what `mtlrec prepare stats` finds out.

    Raises ConfigError with one line per mistake: file and line, key, value, what is allowed.
    """
    path = Path(source)
    is_file = path.suffix in (".yaml", ".yml") or path.is_file()
    if is_file and not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8") if is_file else recipe_text(str(source))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    return parse_config(text, str(path) if is_file else f"recipe {source}", overrides, statistics_to_come)


def job_of(run: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a run's folder. Raises ConfigError where there is none."""
    path = RunFolder(run).config
    if not path.is_file():
        raise ConfigError(f"{run}: no run (it has no config.yaml)")
    return parse_config(path.read_text(encoding="utf-8"), str(path), overrides)


def parse_config(
    text: str, where: str = "config", overrides: Sequence[str] = (), statistics_to_come: bool = False
) -> JobConfig:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_nodes(root, where)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # PyYAML's own, on a date of the 99th, say
        raise ConfigError(f"{where}: holds a value that YAML cannot read ({error or type(error).__name__})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: a job is a mapping (name, data, tables, features, tasks, model, ...)")
    for override in overrides:
        apply_override(tree, override)
    try:
        if not statistics_to_come:
            fill_in(tree)
        return JobConfig.model_validate(tree, context={STATISTICS_TO_COME: statistics_to_come})
    except LocatedError as error:
        raise ConfigError(line_of(error.path, str(error), tree, root, where)) from None
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error, tree, yaml.safe_load(text), root, where))) from None


def _check_nodes(node: yaml.Node | None, where: str, above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuses what YAML itself would take: a key that stands twice (the last would win), a node that holds itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return
    line = node.start_mark.line + 1
    if any(node is one for one in above):
        raise ConfigError(f"{where}:{line}: an anchor that holds itself; write it out")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_nodes(item, where, (*above, node))
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where}:{line}: a key is a word, not a list or a mapping")
        if key.value in seen:
            raise ConfigError(f"{where}:{line}: {key.value}: stands here for the second time; keep one of them")
        seen.add(key.value)
        _check_nodes(value, where, (*above, node))


# ---- overrides


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.c=value` in place; a list's item is named by its index or by its `name`."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: write key.path=value, for example --set train.epochs=2")
    if not text.strip():
        raise ConfigError(f"--set {override}: no value; write {dotted}=null where it should hold nothing")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    node: Any = tree
    keys = dotted.split(".")
    for key in keys[:-1]:
        node = _step(node, key, override)
    if isinstance(node, list):
        node[_index(node, keys[-1], override)] = value
        return
    if keys[-1] == "kind" and node.get("kind", value) != value:
        node["kind"] = value
        _keep_what_the_kind_knows(tree, node, keys[:-1])
        return
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


def _keep_what_the_kind_knows(tree: dict[str, Any], section: dict[str, Any], path: Sequence[str]) -> None:
    """`--set model.fusion.kind=mmoe` on an AdaTT job keeps what MMoE also knows and forgets the rest."""
    for option in models_at(path, tree):
        if is_kind(option, section["kind"]):
            for key in [key for key in section if key not in option.model_fields]:
                del section[key]
