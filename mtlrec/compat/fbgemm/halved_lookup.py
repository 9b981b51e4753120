"""Row-wise Adagrad on CPU in a quarter of the time, by showing FBGEMM each feature as two.

Upstream: FBGEMM generates machine code for row-wise Adagrad over a table that one feature looks up. That code takes
four times as long as the plain loop that FBGEMM keeps for tables shared by several features (docs/log.md): it mixes
instructions of two generations, for which the CPU waits. TorchRec has no setting for the class of its lookups, so the
class is replaced while it builds them. Seen in FBGEMM 1.8 and TorchRec 1.8.
Delete when: FBGEMM's update of a table with one feature is as fast as that of a shared one.

A batch of B rows of T features is laid out in memory just as one of B / 2 rows of 2 T features, so each feature is
given to FBGEMM as two that share its table: the first half of the batch and the second. The arithmetic is the same but
for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec.distributed import batched_embedding_kernel

WIDEST = 64
"""From 128 columns on the plain loop is no faster, and moving the halves costs more than it saves."""


class HalvedLookup(SplitTableBatchedEmbeddingBagsCodegen):
    """FBGEMM's fused lookup, whose features are each two to the kernel and one to the caller.

    It stays FBGEMM's own where a table is on a GPU or wider than `WIDEST`.
    """

    def __init__(
        self,
        embedding_specs: list[tuple[int, int, Any, ComputeDevice]],
        feature_table_map: list[int],
        **options: Any,
    ) -> None:
        dims = [dim for _, dim, _, _ in embedding_specs]
        self.halved = max(dims) <= WIDEST and all(device == ComputeDevice.CPU for _, _, _, device in embedding_specs)
        self.runs = [(len(list(run)), dim) for dim, run in groupby(dims[table] for table in feature_table_map)]
        """Features in a row whose tables are as wide: how many, and how wide."""
        times = 2 if self.halved else 1
        features = [table for table in feature_table_map for _ in range(times)]
        super().__init__(embedding_specs, feature_table_map=features, **options)

    def forward(
        self, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **others: Any
    ) -> Tensor:
        """As FBGEMM's: ids [V] and offsets [features * B + 1] to pooled embeddings [B, the features' columns]."""
        if not self.halved:
            return super().forward(indices, offsets, per_sample_weights, **others)
        features = sum(count for count, _ in self.runs)
        rows = (offsets.numel() - 1) // features
        if rows % 2:
            offsets = with_empty_row(offsets, features)
        pooled = super().forward(indices, offsets, per_sample_weights, **others)
        parts = pooled.split([2 * count * dim for count, dim in self.runs], dim=1)
        whole = [joined(part, count, dim) for part, (count, dim) in zip(parts, self.runs, strict=True)]
        return torch.cat(whole, dim=1)[:rows] if len(whole) > 1 or rows % 2 else whole[0]


def with_empty_row(offsets: Tensor, features: int) -> Tensor:
    """[features * B + 1] to [features * (B + 1) + 1]: after each feature's rows one without ids."""
    starts, end = offsets[:-1].view(features, -1), offsets[-1:]
    ends_of_features = torch.cat([starts[1:, 0], end])
    return torch.cat([torch.cat([starts, ends_of_features[:, None]], dim=1).flatten(), end])


def joined(part: Tensor, count: int, dim: int) -> Tensor:
    """[B / 2, count * 2 * dim], every feature's halves side by side, to [B, count * dim]."""
    return part.unflatten(1, (count, 2, dim)).permute(2, 0, 1, 3).reshape(-1, count * dim)


@contextmanager
def halved_lookups() -> Iterator[None]:
    """While it lasts, TorchRec builds its fused lookups as `HalvedLookup`."""
    stock = batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen
    batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = HalvedLookup
    try:
        yield
    finally:
        batched_embedding_kernel.SplitTableBatchedEmbeddingBagsCodegen = stock
