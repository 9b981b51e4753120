"""The model: sparse arch, bottom, fusion, heads.

B batch, F dense features, D bottom width, T tasks, H fusion width. Everything after the vectors sits in one submodule
without tables: TorchRec's pipeline traces what holds tables and leaves the rest alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.heads import Head, HeadOutput
from mtlrec.models.sparse_arch import SparseArch


class MultiTaskModel(nn.Module):
    """dense [B, F], ids by collection -> HeadOutput, [B, T] each."""

    def __init__(self, sparse_arch: SparseArch, over_arch: OverArch) -> None:
        super().__init__()
        self.sparse_arch = sparse_arch
        self.over_arch = over_arch

    def forward(self, dense: Tensor, sparse: dict[str, KeyedJaggedTensor]) -> HeadOutput:
        pooled = self.sparse_arch(sparse)
        return self.over_arch(dense, pooled)


class OverArch(nn.Module):
    """What follows the lookup: dense [B, F], {feature: [B, dim]} in the config's order -> HeadOutput, [B, T] each.

    Args:
        inputs: which features each slot of the fusion layer reads
        bottom: [B, F], embeddings -> [B, D]
        fusion: [B, D] or [B, slots, D] -> [B, T, H]
        heads: [B, T, H] -> HeadOutput
    """

    def __init__(self, inputs: SlotInputs, bottom: nn.Module, fusion: nn.Module, heads: Head) -> None:
        super().__init__()
        self.inputs = inputs
        self.bottom = bottom
        self.fusion = fusion
        self.heads = heads

    def forward(self, dense: Tensor, pooled: Mapping[str, Tensor]) -> HeadOutput:
        return self.heads(self.fused(dense, pooled))

    def fused(self, dense: Tensor, pooled: Mapping[str, Tensor]) -> Tensor:
        """[B, T, H]: what the heads read."""
        slots = self.inputs(self.bottom, dense, list(pooled.values()))
        return self.fusion(slots)


class SlotInputs(nn.Module):
    """Runs the bottom once for every distinct set of features.

    A slot that reads only some features gets zeros in place of the others: the bottom's weights are shared, its inputs
    are not, and no gradient reaches what a task may not see. Where every slot reads everything, the fusion layer gets
    [B, D] and no copy per task is made.

    Args:
        dense_masks: per slot, 0/1 for each dense feature
        sparse_masks: per slot, 0/1 for each sparse feature
    """

    dense_rows: Tensor

    def __init__(self, dense_masks: Sequence[Sequence[int]], sparse_masks: Sequence[Sequence[int]]) -> None:
        super().__init__()
        masks = [(tuple(dense), tuple(sparse)) for dense, sparse in zip(dense_masks, sparse_masks, strict=True)]
        self.distinct = list(dict.fromkeys(masks))
        self.slots = [self.distinct.index(mask) for mask in masks]
        dense_rows = torch.tensor([dense for dense, _ in self.distinct], dtype=torch.float32)
        self.register_buffer("dense_rows", dense_rows, persistent=False)

    def forward(self, bottom: nn.Module, dense: Tensor, embeddings: list[Tensor]) -> Tensor:
        """[B, D] where all slots read everything, else [B, slots, D]."""
        if all(all(mask) for masks in self.distinct for mask in masks):
            return bottom(dense, embeddings)
        outputs = [
            bottom(dense * dense_row, _masked(embeddings, sparse))
            for dense_row, (_, sparse) in zip(self.dense_rows, self.distinct, strict=True)
        ]
        return torch.stack([outputs[slot] for slot in self.slots], dim=1)


def _masked(embeddings: list[Tensor], mask: tuple[int, ...]) -> list[Tensor]:
    return [one if keep else torch.zeros_like(one) for one, keep in zip(embeddings, mask, strict=True)]
