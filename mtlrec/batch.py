"""One training batch: what the data path hands to the model, the loss and the metrics.

B rows, F dense features, T tasks. What depends on labels alone is computed in the data path
(`data/features/spaces.py`): the device multiplies by it and derives nothing from it.

dense           [B, F] float32   transformed; columns of `features.dense`, in the config's order
sparse          dict of KJT      int64 ids by collection (`features.collections`), a key per feature in the config's
                                 order; only ids of `weighted_bags` have weights
targets         [B, T] float32   consistent with the funnel. Outside its task's space a number is 0; a flag (0 or 1)
                                 may be read there
in_space        [B, T] bool      rows that the task's loss is taken over
entire_space    [B, T] bool      rows over which p(task) over all impressions is compared with the target
sample_weights  [B, T] float32   0 for padding, and for rows that were left out
row_mask        [B]    float32   0 for such rows, else 1; ranks take equal batches, so a short one is padded
label_faults    [2, T] int64     rows whose label broke the funnel; the parent's positives without a label of their own
group_ids       [B]    int64     `metrics.group_by`'s, or None where no evaluation wants them; null is NO_GROUP
origin          str              the files that the rows came from, for messages

Batches to predict have no labels: T is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor
from torchrec.streamable import Pipelineable

NO_GROUP = -(2**63)


@dataclass
class Batch(Pipelineable):
    dense: Tensor
    sparse: dict[str, KeyedJaggedTensor]
    targets: Tensor
    in_space: Tensor
    entire_space: Tensor
    sample_weights: Tensor
    row_mask: Tensor
    label_faults: Tensor
    group_ids: Tensor | None = None
    origin: str = ""

    def ids(self) -> dict[str, JaggedTensor]:
        """By feature, whatever its collection."""
        return {name: ids for keyed in self.sparse.values() for name, ids in keyed.to_dict().items()}

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        for part in self._parts().values():
            for each in part.values() if isinstance(part, dict) else (part,):
                each.record_stream(stream)

    def pin_memory(self) -> Batch:
        return self._each(lambda part: (compact(part) if isinstance(part, Tensor) else part).pin_memory())

    def __len__(self) -> int:
        return self.row_mask.shape[0]

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        changed: dict[str, Any] = {
            name: {key: change(ids) for key, ids in part.items()} if isinstance(part, dict) else change(part)
            for name, part in self._parts().items()
        }
        return Batch(**changed, origin=self.origin)

    def _parts(self) -> dict[str, Any]:
        """Tensors and the jagged tensors, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None and name != "origin"}


def compact(part: Tensor) -> Tensor:
    """The tensor without gaps. A view of a block's columns would take as much pinned memory as the block."""
    return part if part.is_contiguous() or part.T.is_contiguous() else part.contiguous()
