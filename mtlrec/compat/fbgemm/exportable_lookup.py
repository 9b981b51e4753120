"""FBGEMM's inference lookup in a form that torch.export and AOTInductor take.

Upstream:
- `torch.export` cannot trace a lookup that is a submodule of the program: it has no fakes for the script objects in it,
  a counter among them. In a plain list they are not seen, and the lookup is traced as the operators that it calls.
- AOTInductor stops at `fbgemm::bounds_check_indices`. Without the check, ids out of range read other memory: whoever
  calls the program must check them.
Seen in torch 2.13 and FBGEMM 1.8.
Delete when: a lookup exports as a submodule, with its ids checked.
"""

from __future__ import annotations

from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen


def build_exportable_lookup(tables: list[Any], **options: Any) -> list[IntNBitTableBatchedEmbeddingBagsCodegen]:
    """Build one lookup that does not check ids, in a list of one, to be kept as an attribute of a module.

    Args:
        tables: FBGEMM's `embedding_specs`
        options: of `IntNBitTableBatchedEmbeddingBagsCodegen`
    """
    return [IntNBitTableBatchedEmbeddingBagsCodegen(tables, bounds_check_mode=BoundsCheckMode.NONE, **options)]
