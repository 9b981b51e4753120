"""A part of torchrun's store for each attempt.

Upstream: the ranks that torchrun restarts share the agent's store with the attempt before and use it without a prefix.
They may read the dead ranks' addresses and hang. torch's own `env://` rendezvous does the same. Seen in torch 2.13.
A prefix prevents it on one node. On several nodes the agents' counts of restarts differ; there
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (`launch/components.py` sets it) has torchrun make a new store for every attempt.
Delete when: `env://` gives each attempt a store or a prefix of its own.
"""

from __future__ import annotations

import os

import torch.distributed as dist


def separate_attempts(agent_store: dist.Store) -> dist.Store:
    """Return the part of torchrun's store that belongs to this attempt."""
    return dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", agent_store)
