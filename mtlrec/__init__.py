"""mtlrec: multi-task recommender training on TorchRec.

Importing the package costs nothing: it loads neither torch nor TorchRec nor FBGEMM. Take what you need:

    import mtlrec                                # mtlrec.train, evaluate, predict, export, ... (see mtlrec/api)
    from mtlrec.config import JobConfig, Task    # a job in Python
    from mtlrec.layers import AdaTTSp            # plain torch modules
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlrec.api import bench as bench
    from mtlrec.api import compare as compare
    from mtlrec.api import diagnose as diagnose
    from mtlrec.api import evaluate as evaluate
    from mtlrec.api import export as export
    from mtlrec.api import inspect as inspect
    from mtlrec.api import load_job as load_job
    from mtlrec.api import plan as plan
    from mtlrec.api import predict as predict
    from mtlrec.api import split as split
    from mtlrec.api import train as train

__version__ = "0.1.0"

VERBS = (
    "bench",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "inspect",
    "load_job",
    "plan",
    "predict",
    "split",
    "train",
)


def __getattr__(name: str) -> Any:
    """Load a verb when it is first named."""
    if name not in VERBS:
        raise AttributeError(f"module 'mtlrec' has no attribute '{name}'")
    return getattr(import_module("mtlrec.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *VERBS])
