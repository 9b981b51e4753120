"""Every example in the docstrings of mtlrec.layers runs and prints what it says.

The package's own is a model of somebody else's with our layers in it.
"""

import doctest
import importlib
import inspect
import pkgutil

import pytest
from torch import nn

import mtlrec.layers

WITHOUT_CODE = "mtlrec.layers.blocks.arguments"
MODULES = [
    "mtlrec.layers",
    *(
        module.name
        for module in pkgutil.walk_packages(mtlrec.layers.__path__, "mtlrec.layers.")
        if not module.ispkg and module.name != WITHOUT_CODE
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_layer_has_an_example(name: str) -> None:
    without = [kind.__name__ for kind in public_classes(name) if ">>>" not in (kind.__doc__ or "")]
    assert not without


def public_classes(module_name: str) -> list[type]:
    members = inspect.getmembers(importlib.import_module(module_name), inspect.isclass)
    return [kind for _, kind in members if issubclass(kind, nn.Module) and kind.__module__ == module_name]
