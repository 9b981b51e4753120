"""torch still cannot export a lookup that is a submodule, nor compile one that checks its ids."""

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from mtlrec.compat.exportable_lookup import build_exportable_lookup

TABLES = [("table", 10, 8, SparseType.FP32, EmbeddingLocation.HOST)]
ARGUMENTS = (torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]))


class Program(nn.Module):
    def __init__(self, lookups: list[IntNBitTableBatchedEmbeddingBagsCodegen]) -> None:
        super().__init__()
        self.lookups = lookups

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        pooled: Tensor = self.lookups[0](ids, offsets, None)
        return 2 * pooled


def lookup(check: BoundsCheckMode) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    made = IntNBitTableBatchedEmbeddingBagsCodegen(
        TABLES, bounds_check_mode=check, device="cpu", output_dtype=SparseType.FP32, row_alignment=1
    )
    made.fill_random_weights()
    return made


def lower(lookups: list[IntNBitTableBatchedEmbeddingBagsCodegen]) -> None:
    """Exports, and does the first step of compiling, where it fails."""
    with torch.no_grad():
        torch.export.export(Program(lookups), ARGUMENTS).run_decompositions()


def test_a_lookup_without_check_in_a_list_is_taken() -> None:
    options = {"device": "cpu", "output_dtype": SparseType.FP32, "row_alignment": 1}
    lookups = build_exportable_lookup(TABLES, **options)
    lookups[0].fill_random_weights()
    lower(lookups)


def test_a_lookup_that_is_a_submodule_is_not_taken() -> None:
    with pytest.raises(Exception) as raised:
        lower(nn.ModuleList([lookup(BoundsCheckMode.NONE)]))  # type: ignore[arg-type]
    assert "registered a fake class" in str(raised.value), "the list of compat/exportable_lookup.py can be deleted"


def test_a_lookup_that_checks_its_ids_is_not_taken() -> None:
    with pytest.raises(Exception) as raised:
        lower([lookup(BoundsCheckMode.WARNING)])
    assert "bounds_check_indices" in str(raised.value), "compat/exportable_lookup.py can leave the check on"
