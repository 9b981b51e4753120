"""Parts of a job that come in kinds: the keys of a kind are the arguments of its class's constructor.

`kind: ple` names a class of mtlrec, `kind: my_package.module:MyFusion` a class of the user's own, which must be on
their path: a job that names a class runs its module. Types, defaults, bounds and descriptions are read from the
constructor and its docstring, so nothing about a kind is declared twice.
"""

from __future__ import annotations

import importlib
import linecache
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import PydanticCustomError, core_schema

from mtlrec.config.base import Strict, listed
from mtlrec.config.kinds.signature import fields_of
from mtlrec.errors import LocatedError, UserError

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class PartConfig(Strict):
    """A chosen kind and its arguments. Each kind has a subclass, derived from its class by `Family.config_class`."""

    part_class: ClassVar[Any]
    family: ClassVar[Family]

    kind: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that the job sets."""
        common = self.family.section.model_fields
        return {name: getattr(self, name) for name in type(self).model_fields if name not in common}

    def build(self, **supplied: Any) -> Any:
        """An instance of the kind's class. Raises ValueError where the arguments do not go together."""
        return self.part_class(**supplied, **self.arguments)

    def check(self, path: tuple[str | int, ...], **supplied: Any) -> None:
        """Construct it without memory, to see whether it can be. Raises LocatedError, with `path` of the job."""
        import torch

        try:
            with torch.device("meta"), located(path):
                self.build(**supplied)
        except LocatedError as error:
            argument = str(error).split(maxsplit=1)[0]  # constructors begin with the argument that is wrong
            raise LocatedError((*path, argument) if argument in self.arguments else path, str(error)) from error

    def __reduce__(self) -> Any:  # its class has no name to be pickled by
        return self.family.read, (self.model_dump(),)


@dataclass(frozen=True)
class Family:
    """The kinds that a key of the job chooses from.

    Args:
        name: what messages call such a part
        kinds: the classes of mtlrec
        base: what a user's own class must extend
        supplied: arguments that the model supplies, which are therefore no keys
        default: the kind of a section that names none
        section: what the sections of all kinds have in common
    """

    name: str
    kinds: Mapping[str, Any]
    base: type
    supplied: tuple[str, ...] = ()
    default: str | None = None
    section: type[PartConfig] = PartConfig

    def __call__(self, kind: str, **arguments: Any) -> PartConfig:
        """A section of this kind. Raises ValidationError for arguments that the kind does not take."""
        return self.read({"kind": kind, **arguments})

    def class_of(self, kind: str) -> Any:
        """Raises ValueError for an unknown kind, and for a class that cannot be imported or is another part."""
        if kind in self.kinds:
            return self.kinds[kind]
        if DOTTED.fullmatch(kind):
            return _import_class(kind, self.base)
        raise ValueError(f"unknown kind; allowed are {listed(self.kinds)}, or your own class as package.module:Class")

    def config_class(self, kind: str) -> type[PartConfig]:
        """The keys of a kind. Raises ValueError as `class_of` does, and for a constructor that a job cannot call."""
        return _config_class(self, kind, self.class_of(kind))

    def read(self, section: Any) -> PartConfig:
        """A section of the job. Raises ValidationError, PydanticCustomError."""
        if isinstance(section, PartConfig) and issubclass(section.part_class, self.base):
            return section
        if not isinstance(section, Mapping):
            raise PydanticCustomError("mapping", "must be a mapping with a kind and its options")
        kind = section.get("kind", self.default)
        if kind is None:
            raise PydanticCustomError("kind_missing", "needs a kind")
        try:
            config_class = self.config_class(str(kind))
        except ValueError as error:
            raise PydanticCustomError("kind", "{message}", {"message": str(error)}) from None
        return config_class.model_validate({"kind": kind, **section})

    def __hash__(self) -> int:
        return hash(self.name)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda part, info: part.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        own = {
            "type": "object",
            "description": f"a {self.name} of your own, as package.module:Class, and its constructor's arguments",
            "properties": {"kind": {"type": "string", "pattern": f"^{DOTTED.pattern}$"}},
            "required": ["kind"],
        }
        built_in = [handler(self.config_class(kind).__pydantic_core_schema__) for kind in self.kinds]
        return {"oneOf": [*built_in, own]}


@cache
def _config_class(family: Family, kind: str, part_class: Any) -> type[PartConfig]:
    fields: dict[str, Any] = fields_of(part_class, family.supplied)
    for name in fields:
        if hasattr(family.section, name) or name in family.section.model_fields:
            raise ValueError(f"the constructor of {part_class.__name__} takes {name}, which no key can be called")
    fields["kind"] = (Literal[kind], ...)  # type: ignore[valid-type]
    description = (part_class.__doc__ or "").split("\n\n")[0]
    make: Any = create_model  # a type checker cannot know the fields
    made: type[PartConfig] = make(part_class.__name__, __base__=family.section, __doc__=description, **fields)
    made.part_class, made.family = part_class, family
    return made


@contextmanager
def located(path: tuple[str | int, ...]) -> Iterator[None]:
    """Turn a constructor's ValueError into a LocatedError: layers, heads and losses know no keys.

    A ValueError that torch or Python raised, of a strict zip say, is a bug and stays one.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        if linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise "):
            raise LocatedError(path, str(error)) from error
        raise


def _import_class(path: str, base: type) -> type:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise ValueError(f"no module {error.name}; install it, or add its folder to PYTHONPATH") from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        problem = "no such class" if found is None else "is no subclass"
        raise ValueError(f"{problem}: {class_name} of {module_name} must extend {base.__module__}.{base.__name__}")
    return found
