"""Types of constructor arguments that say which values are allowed.

To Python they are plain numbers and lists. A job's configuration is derived from the constructors' signatures, and
there the bounds are checked, with the key and the line of the YAML. A constructor called from Python checks for itself.
"""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

Size = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Le(1)]
"""Above 0, at most 1."""
BelowOne = Annotated[float, Ge(0), Lt(1)]
"""At least 0, below 1."""
Dropout = BelowOne
Widths = Sequence[Size]
"""Output widths of layers, in order."""
NonEmptyWidths = Annotated[Widths, MinLen(1)]
Levels = Annotated[Sequence[NonEmptyWidths], MinLen(1)]
"""One inner list of widths per level."""
