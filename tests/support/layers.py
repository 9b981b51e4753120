"""Sizes with which every fusion layer has something to share, and more than one expert where it can."""

import inspect
from typing import Any

from mtlrec.layers import FusionLayer

SIZES = {"num_experts": 3, "num_task_experts": 2, "num_shared_experts": 1}


def sizes_of(kind: type[FusionLayer]) -> dict[str, Any]:
    """Those of `SIZES` that the kind takes."""
    return {name: size for name, size in SIZES.items() if name in inspect.signature(kind).parameters}
