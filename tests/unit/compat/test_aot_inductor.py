"""torch still keeps AOTInductor's functions private, and still has no exception for a missing compiler."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.exc import InvalidCxxCompiler

from mtlrec.compat.aot_inductor import CompilerFailed, compile_package


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.sin()


def test_the_functions_are_private() -> None:
    public = hasattr(torch.export, "aoti_compile_and_package") or hasattr(torch.export, "aoti_load_package")
    assert not public, "compat/aot_inductor.py can be deleted"


def test_a_missing_compiler_is_told_by_text(tmp_path: Path) -> None:
    program = torch.export.export(Double(), (torch.ones(3),))
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(CompilerFailed, match="InvalidCxx") as raised:
        compile_package(program, tmp_path / "model.pt2")
    named = isinstance(raised.value.__cause__, InvalidCxxCompiler)
    assert not named, "compat/aot_inductor.py can catch InvalidCxxCompiler and read no text"
