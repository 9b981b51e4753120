"""What FBGEMM cannot train on CPU, so that a job which needs it is refused with a reason.

Upstream:
- There is no fused Adam on CPU, and weight decay is ignored there without a word: `config/kinds/optimizers.py` says so
  of each optimizer (`fused_on`, `decays_on`).
- A rank whose shard of a row-wise table has no rows has no lookup on CPU. TorchRec gives every rank
  ceil(rows / world_size) rows, so the last ranks of a small table may have none.
Seen in FBGEMM 1.8 and TorchRec 1.8.
Delete when: FBGEMM has a lookup in a table without rows.
"""

from __future__ import annotations

import math


def has_rank_without_lookup(rows: int, world_size: int, device_type: str) -> bool:
    """Whether a table of `rows` cut by rows leaves a rank without rows, and so without a lookup."""
    return device_type == "cpu" and math.ceil(rows / world_size) * (world_size - 1) >= rows
