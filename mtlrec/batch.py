"""One training batch: what the data path hands to the model and the loss.

dense       [B, F]   float32, transformed                  columns of `features.dense`, in the config's order
sparse      KJT      one key per `features.sparse`         int64 ids; keys in the config's order
labels      [B, C]   float32, 0 where unknown              columns of `JobConfig.label_columns`
label_mask  [B, C]   float32, 1 where the label is known   (null or NaN leaves the task's sample space)
weights     [B]      float32, 0 for a padding row          ranks take equal batches; padding counts nowhere
origin      str      the files the rows came from          for messages only
groups      [B]      int64, or None                        `metrics.group_by`'s, where an evaluation wants it; null
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
    labels: Tensor
    label_mask: Tensor
    weights: Tensor
    origin: str = ""
    groups: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            label_mask=self.label_mask.to(device, non_blocking=non_blocking),
            weights=self.weights.to(device, non_blocking=non_blocking),
            origin=self.origin,
            groups=None if self.groups is None else self.groups.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for tensor in (self.dense, self.labels, self.label_mask, self.weights, self.groups):
            if tensor is not None:
                tensor.record_stream(stream)
        self.sparse.record_stream(stream)

    def pin_memory(self) -> Batch:
        return Batch(
            dense=self.dense.pin_memory(),
            sparse=self.sparse.pin_memory(),
            labels=self.labels.pin_memory(),
            label_mask=self.label_mask.pin_memory(),
            weights=self.weights.pin_memory(),
            origin=self.origin,
            groups=None if self.groups is None else self.groups.pin_memory(),
        )

    def __len__(self) -> int:
        return self.weights.shape[0]
