"""What every section of a job is made of: strict models, the field's types, an error that knows its key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Widths = list[PositiveInt]
NonEmptyWidths = Annotated[list[PositiveInt], Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def without_secrets(text: str) -> str:
    """`s3://key:secret@bucket` is shown as `s3://bucket`, wherever in a text it stands."""
    return re.sub(r"://[^?\s@]*:[^?\s]*@", "://", text)


def listed(items: Iterable[str]) -> str:
    return ", ".join(items)
