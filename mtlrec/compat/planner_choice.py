"""What TorchRec's planner estimated for the plan that it chose.

Upstream: `EmbeddingShardingPlanner.plan` returns where the shards go, without their memory and times. The planner tells
these to its `stats` object only, by keyword arguments of `Stats.log` that the base class does not name.
Seen in TorchRec 1.8.
Delete when: the planner returns the chosen options with their estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torchrec.distributed.planner.types import ShardingOption, Stats


@dataclass
class PlannerChoice(Stats):
    """The options that a planner chose and the devices with the memory that was left to them, once given as `stats`."""

    options: Sequence[ShardingOption] = ()
    devices: Sequence[Any] = field(default_factory=list)

    def log(self, *, best_plan: Sequence[ShardingOption], storage_reservation: Any, **_: Any) -> None:
        self.options = best_plan
        left = storage_reservation.last_reserved_topology
        self.devices = left.devices if left is not None else []
