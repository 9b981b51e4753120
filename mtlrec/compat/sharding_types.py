"""Row-wise sharding on CPU.

Upstream: on CPU `EmbeddingBagCollectionSharder` does not offer the sharding types that cut tables by rows, although
gloo in torch 2.13 has the reduce-scatter that they need and they train correctly. Seen in TorchRec 1.8.
Delete when: the stock sharder offers them on CPU.
"""

from __future__ import annotations

from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingType

BY_ROWS = (ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value)


class TableSharder(EmbeddingBagCollectionSharder):
    """The stock sharder, with the row-wise sharding types on every device."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        stock = super().sharding_types(compute_device_type)
        return stock + [kind for kind in BY_ROWS if kind not in stock]
