"""FBGEMM's lookups inside a sharded collection, and their counts of iterations.

Upstream:
- A `ShardedEmbeddingBagCollection` keeps its lookups in the private list `_lookups`, which `modules()` does not see.
- FBGEMM counts every forward in training mode and in evaluation alike as an iteration (`iter`, `iter_cpu`). Its Adam
  corrects its averages by this count, so an evaluation between two steps would change training.
Seen in TorchRec 1.8 and FBGEMM 1.8.
Delete when: TorchRec lists its lookups among `modules()` and FBGEMM does not count lookups without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection


def fused_lookups(module: nn.Module) -> list[Any]:
    """Find the FBGEMM lookups of every sharded collection in `module`."""
    collections = [part for part in module.modules() if isinstance(part, ShardedEmbeddingBagCollection)]
    parts = [part for tables in collections for lookup in tables._lookups for part in lookup.modules()]
    return [part for part in parts if hasattr(part, "iter_cpu")]


@contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """Set the lookups' counts of iterations back at the end."""
    lookups = fused_lookups(module)
    before = [(part.iter.clone(), part.iter_cpu.clone()) for part in lookups]
    try:
        yield
    finally:
        for part, (iterations, on_host) in zip(lookups, before, strict=True):
            part.iter.copy_(iterations)
            part.iter_cpu.copy_(on_host)
