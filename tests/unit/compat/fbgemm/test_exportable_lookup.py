"""torch still cannot export a lookup that is a submodule, nor compile one that checks its ids."""

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from mtlrec.compat.fbgemm.exportable_lookup import build_exportable_lookup

TABLES = [("table", 10, 8, SparseType.FP32, EmbeddingLocation.HOST)]
OPTIONS: dict[str, Any] = {"device": "cpu", "output_dtype": SparseType.FP32, "row_alignment": 1}
ARGUMENTS = (torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]))


class Program(nn.Module):
    def __init__(self, lookups: Any) -> None:
        super().__init__()
        self.lookups = lookups

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        pooled: Tensor = self.lookups[0](ids, offsets, None)
        return 2 * pooled


def lookup(check: BoundsCheckMode) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    made = IntNBitTableBatchedEmbeddingBagsCodegen(TABLES, bounds_check_mode=check, **OPTIONS)
    made.fill_random_weights()
    return made


def lower(lookups: Any) -> str:
    """Exports, and takes the first step of compiling, where it fails. The error, if there is one."""
    try:
        with torch.no_grad():
            torch.export.export(Program(lookups), ARGUMENTS).run_decompositions()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_lookup_without_check_in_a_list_is_taken() -> None:
    lookups = build_exportable_lookup(TABLES, **OPTIONS)
    lookups[0].fill_random_weights()
    assert not lower(lookups)


def test_a_lookup_that_is_a_submodule_is_not_taken() -> None:
    error = lower(nn.ModuleList([lookup(BoundsCheckMode.NONE)]))
    assert "registered a fake class" in error, "the list of compat/fbgemm/exportable_lookup.py can be deleted"


def test_a_lookup_that_checks_its_ids_is_not_taken() -> None:
    error = lower([lookup(BoundsCheckMode.WARNING)])
    assert "mutated" in error, "compat/fbgemm/exportable_lookup.py can leave the check on"
