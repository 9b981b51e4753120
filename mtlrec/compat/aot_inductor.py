"""Compiling and loading an AOTInductor package, by names that torch keeps private.

Upstream: `aoti_compile_and_package` and `aoti_load_package` are documented as the way to package an exported program,
and live in the private package `torch._inductor`, as their exceptions do. A missing C++ compiler has no exception of
its own: only the text of an `InductorError`, or of the error inside it, tells. Seen in torch 2.13.
Delete when: torch exports these functions and an exception for a missing compiler from a public module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch._inductor.exc import CppCompileError, InductorError


class CompilerFailed(Exception):
    """There is no C++ compiler, or it failed."""


def compile_package(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile `program` into the package `path`. Raises CompilerFailed where there is no C++ compiler that does."""
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except (InductorError, CppCompileError) as error:
        if "InvalidCxxCompiler" not in str(error) and "CppCompileError" not in repr(error):
            raise
        raise CompilerFailed(str(error)) from error


def load_package(path: Path) -> Callable[..., Any]:
    """Load the function in a package."""
    function: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return function
