"""Jobs as the verbs take them: an object, a YAML file or a recipe, with overrides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic_core import PydanticSerializationError, to_jsonable_python

from mtlrec.config import JobConfig
from mtlrec.config.file import load_config, parse_config
from mtlrec.errors import ConfigError

Job = JobConfig | str | os.PathLike[str]
"""A job, the path of a YAML file, or the name of a recipe."""
Overrides = Mapping[str, Any] | Sequence[str]
"""`{"train.epochs": 2}`, or `["train.epochs=2"]` as the command's --set takes them."""
SPLITS = ("train", "valid", "test")


def load_job(job: Job, overrides: Overrides = ()) -> JobConfig:
    """The job, with some keys set otherwise and checked again.

    Raises ConfigError with one line per mistake: key, value, what is allowed.
    """
    settings = settings_of(overrides)
    if not isinstance(job, JobConfig):
        return load_config(os.fspath(job), settings)
    if not settings:
        return job
    return parse_config(yaml.safe_dump(job.dump(), sort_keys=False), f"job {job.name}", settings)


def settings_of(overrides: Overrides) -> list[str]:
    """As `key.path=value`, the value in YAML."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={_flow(value)}" for key, value in overrides.items()]


def _flow(value: Any) -> str:
    """One line of YAML. Sections may be given as the config's own objects."""
    try:
        plain = to_jsonable_python(value)
    except PydanticSerializationError:
        raise ConfigError(f"overrides: {value!r}: give a plain value or one of the config's own objects") from None
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def check_at_least(smallest: int, **counts: int) -> None:
    """Raises ConfigError, naming the argument, for a count that is too small."""
    for name, count in counts.items():
        if count < smallest:
            raise ConfigError(f"{name}={count}: give {smallest} or more")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: no such split; there are {', '.join(SPLITS[:-1])} and {SPLITS[-1]}")
