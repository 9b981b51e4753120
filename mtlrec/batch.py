"""One training batch: what the data path hands to the model and the loss.

dense       [B, F]   float32, transformed                  columns of `features.dense`, in the config's order
sparse      KJT      one key per `features.sparse`         int64 ids; keys in the config's order
label_columns      [B, C]   float32, 0 where unknown              columns of `JobConfig.label_columns`
label_known  [B, C]   float32, 1 where the label is known   (null or NaN leaves the task's sample space)
row_mask     [B]      float32, 0 for a padding row          ranks take equal batches; padding counts nowhere
origin      str      the files the rows came from          for messages only
group_ids      [B]      int64, or None                        `metrics.group_by`'s, where an evaluation wants it; null
                                                           is NO_GROUP
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

NO_GROUP = -(2**63)


@dataclass
class Batch(Pipelineable):
    dense: Tensor
    sparse: KeyedJaggedTensor
    label_columns: Tensor
    label_known: Tensor
    row_mask: Tensor
    origin: str = ""
    group_ids: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            label_columns=self.label_columns.to(device, non_blocking=non_blocking),
            label_known=self.label_known.to(device, non_blocking=non_blocking),
            row_mask=self.row_mask.to(device, non_blocking=non_blocking),
            origin=self.origin,
            group_ids=None if self.group_ids is None else self.group_ids.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for tensor in (self.dense, self.label_columns, self.label_known, self.row_mask, self.group_ids):
            if tensor is not None:
                tensor.record_stream(stream)
        self.sparse.record_stream(stream)

    def pin_memory(self) -> Batch:
        return Batch(
            dense=self.dense.pin_memory(),
            sparse=self.sparse.pin_memory(),
            label_columns=self.label_columns.pin_memory(),
            label_known=self.label_known.pin_memory(),
            row_mask=self.row_mask.pin_memory(),
            origin=self.origin,
            group_ids=None if self.group_ids is None else self.group_ids.pin_memory(),
        )

    def __len__(self) -> int:
        return self.row_mask.shape[0]
