"""The jobs of a comparison: one job's data, tables and tasks under every architecture, at one size."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from mtlrec.comparison.capacity import Capacity, Measure, capacity_of, matched
from mtlrec.config import JobConfig
from mtlrec.config.kinds.family import DOTTED
from mtlrec.config.kinds.weighting import Weighting
from mtlrec.config.model import FUSION, HEAD
from mtlrec.errors import ConfigError
from mtlrec.io import one_line

logger = logging.getLogger(__name__)

BASELINE = "single_task"
"""Shares the tables and nothing else: what the others gain is what sharing gives."""


@dataclass(frozen=True)
class Architecture:
    """What is compared. `name` says what sets it apart from the others of its comparison."""

    name: str
    fusion: str
    heads: str
    weighting: str
    capacity: Capacity


@dataclass(frozen=True)
class Candidate(Architecture):
    """An architecture, and the job that trains it."""

    job: JobConfig


def kinds_of(union: Any) -> list[str]:
    """The kinds that a union of the config has, in the order it lists them."""
    members = get_args(get_args(union)[0])
    return [kind for member in members for kind in get_args(member.model_fields["kind"].annotation)]


FUSIONS, HEADS, WEIGHTINGS = list(FUSION.kinds), list(HEAD.kinds), kinds_of(Weighting)


def candidates(
    job: JobConfig,
    fusions: Sequence[str] | None = None,
    heads: Sequence[str] = (),
    weightings: Sequence[str] = (),
    match: Measure | None = "parameters",
) -> list[Candidate]:
    """Every fusion kind with every kind of heads and of weighting; by default the job's own of these two.

    By default the fusion kinds are all that go with the job. A kind takes from the job's own section the keys that it
    has too and that are not left at their defaults, and its own defaults for the rest. Under `match` the experts'
    widths are chosen so that as many parameters, or as much arithmetic, follow the lookup as in the job's own model
    with the same heads; without, the widths are the job's.

    Raises ConfigError, naming the kind, for one that is unknown, does not go with the job's tasks, or has no such size.
    """
    heads, weightings = heads or [job.model.heads.kind], weightings or [job.loss.weighting.kind]
    _check_known("fusion", fusions or [], FUSIONS)
    _check_known("heads", heads, HEADS)
    _check_known("weighting", weightings, WEIGHTINGS)
    found = []
    tried = dict.fromkeys([*FUSIONS, job.model.fusion.kind] if fusions is None else fusions)
    for fusion, head, weighting in itertools.product(tried, dict.fromkeys(heads), dict.fromkeys(weightings)):
        further = [head] * (len(heads) > 1) + [weighting] * (len(weightings) > 1)
        name = "+".join([fusion.rpartition(":")[2], *further])
        try:
            found.append(_candidate(job, name, fusion, head, weighting, match))
        except ConfigError as error:
            if fusions is not None or fusion == job.model.fusion.kind:
                raise
            logger.info(f"left out of the comparison: {error}")
    return found


def _check_known(option: str, named: Sequence[str], known: Sequence[str]) -> None:
    for kind in named:
        if kind not in known and not DOTTED.fullmatch(kind):
            raise ConfigError(f"--{option} {kind}: unknown; kinds are {', '.join(known)}")


def _candidate(job: JobConfig, name: str, fusion: str, head: str, weighting: str, match: Measure | None) -> Candidate:
    try:
        own = _with(
            job,
            heads=_like(set(HEAD.config_class(head).model_fields), job.model.heads, head),
            weighting=_like(_keys_in(Weighting, weighting), job.loss.weighting, weighting),
        )
        keys = set(FUSION.config_class(fusion).model_fields)
        other = _with(own, fusion=_like(keys, job.model.fusion, fusion))
    except ValidationError as error:
        raise ConfigError(f"{name}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {one_line(error)}") from None
    size = capacity_of(other)
    if match is not None:
        other, size = matched(own, other.model.fusion, capacity_of(own), match)
    return Candidate(name, fusion, head, weighting, size, other)


def _like(keys: Collection[str], section: Any, kind: str) -> dict[str, Any]:
    """A section of this kind, with what `section` gives for the kind's keys beside its own kind's defaults."""
    given = section.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in given.items() if key in keys} | {"kind": kind}


def _keys_in(union: Any, kind: str) -> set[str]:
    """The keys of a kind of the union."""
    known = TypeAdapter(union).json_schema()["$defs"]
    keys: set[str] = set()
    for definition in known.values():
        own = definition["properties"].get("kind", {})
        if kind in own.get("enum", [own.get("const")]):
            keys = set(definition["properties"])
    return keys


def _with(job: JobConfig, **sections: dict[str, Any]) -> JobConfig:
    tree = job.dump()
    for name, section in sections.items():
        tree["loss" if name == "weighting" else "model"][name] = section
    return JobConfig.model_validate(tree)
