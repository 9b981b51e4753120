"""A constructor's arguments as fields of a config: types, bounds, defaults, and descriptions from the docstring."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Union, Unpack, get_args, get_origin, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from mtlrec.heads.towers import TowerOptions, Towers
from mtlrec.layers.blocks.experts import ExpertBank, ExpertOptions

OPTIONS: dict[Any, type] = {ExpertOptions: ExpertBank, TowerOptions: Towers}
"""Options that a constructor hands on as `**options`, and the class whose constructor has their defaults."""


def fields_of(part_class: type, supplied: Collection[str]) -> dict[str, tuple[Any, FieldInfo]]:
    """(type, field) by name, for pydantic's `create_model`. `supplied` are arguments that are no keys.

    Raises ValueError for a constructor that cannot be called by name with the supplied arguments.
    """
    constructor = part_class.__init__  # type: ignore[misc]
    parameters = dict(list(inspect.signature(constructor).parameters.items())[1:])
    hints = get_type_hints(constructor, include_extras=True)
    missing = [name for name in supplied if name not in parameters]
    if missing:
        raise ValueError(f"the constructor of {part_class.__name__} must take {', '.join(missing)}")
    descriptions = _described(part_class)
    fields: dict[str, tuple[Any, FieldInfo]] = {}
    for name, parameter in parameters.items():
        if name in supplied:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            fields |= _option_fields(part_class, hints.get(name))
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise ValueError(f"the constructor of {part_class.__name__} takes {name} without a name for a key")
        else:
            fields[name] = _field(hints.get(name, Any), parameter.default, descriptions.get(name))
    return fields


def _option_fields(part_class: type, hint: Any) -> dict[str, tuple[Any, FieldInfo]]:
    options = get_args(hint)[0] if get_origin(hint) is Unpack else None
    if options not in OPTIONS:
        known = ", ".join(f"**options: Unpack[{each.__name__}]" for each in OPTIONS)
        raise ValueError(f"the constructor of {part_class.__name__} takes **options that no key can name but {known}")
    defaults, descriptions = inspect.signature(OPTIONS[options]).parameters, _described(options)
    hints = get_type_hints(options, include_extras=True)
    return {name: _field(hint, defaults[name].default, descriptions.get(name)) for name, hint in hints.items()}


def _field(hint: Any, default: Any, description: str | None) -> tuple[Any, FieldInfo]:
    required = default is inspect.Parameter.empty
    return _listed(hint), Field(... if required else _as_list(default), description=description)


def _listed(hint: Any) -> Any:
    """The type with lists for sequences: what YAML has, and what is equal after a job was written and read again."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_listed(arguments[0]), *arguments[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_listed(argument) for argument in arguments)]  # noqa: UP007
    if origin is Sequence:
        return list[_listed(arguments[0])]  # type: ignore[misc]
    return hint


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, list | tuple) else value


def _described(documented: Any) -> dict[str, str]:
    """What the docstring says of each argument, under "Args:" or "Keys:"."""
    text = inspect.getdoc(documented) or ""
    section = re.search(r"^(?:Args|Keys):\n((?: {4,}.*\n?|\n(?= {4}))+)", text, re.MULTILINE)
    descriptions: dict[str, str] = {}
    for names, entry in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE):
        for name in names.split(", "):
            descriptions[name] = re.sub(r"\s+", " ", entry).strip()
    return descriptions
