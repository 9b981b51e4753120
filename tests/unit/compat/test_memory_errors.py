"""compat/memory_errors.py: what torch raises where memory runs out."""

import pytest
import torch

from mtlrec.compat.memory_errors import is_out_of_memory


def test_torch_has_no_class_for_it_on_the_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert type(caught.value) is RuntimeError, "compat/memory_errors.py can be deleted: torch raises a class of its own"


@pytest.mark.parametrize(
    ("error", "expected"),
    [(MemoryError(), True), (torch.OutOfMemoryError("CUDA"), True), (RuntimeError("shapes"), False)],
)
def test_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
