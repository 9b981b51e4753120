"""A training ends where a loss is not finite; the host finds out without waiting for the step it has just launched."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import NonFiniteError
from mtlrec.models.train_module import StepOutput


class _Launched(NamedTuple):
    """A step whose losses are on their way to the host: there once `copied` has happened, at once where it is None."""

    step: int
    losses: Tensor
    copied: torch.cuda.Event | None
    local_sums: Tensor
    origin: str


class LossCheck:
    """Looks at each step's losses after `lag` further steps were launched, or when `finish` asks for all.

    Reading a loss right away would make the host wait until the device has nothing left to do. So a step's losses are
    copied to pinned memory beside its work. The lag is a number of steps and never a question whether the copy is done:
    all ranks must find out at the same step, because they exchange messages and stop together.

    Args:
        lag: in steps; by default 1 on CUDA and 0 on a CPU, which has nothing to wait for
    """

    def __init__(self, job: JobConfig, ranks: Ranks, lag: int | None = None) -> None:
        self._tasks, self._ranks = [task.name for task in job.tasks], ranks
        is_cuda = ranks.device.type == "cuda"
        self.lag = int(is_cuda) if lag is None else lag
        self._free = [torch.empty(len(job.tasks), pin_memory=is_cuda) for _ in range(self.lag + 1)]
        self._events = [torch.cuda.Event() for _ in self._free] if is_cuda else None
        self._launched: deque[_Launched] = deque()

    def launched(self, output: StepOutput, step: int) -> None:
        """Step `step` was. Raises NonFiniteError where a loss of the step `lag` before it is not finite."""
        place = step % len(self._free)
        losses = self._free[place].copy_(output.report.losses, non_blocking=True)
        copied = None if self._events is None else self._events[place]
        if copied is not None:
            copied.record()
        self._launched.append(_Launched(step, losses, copied, output.report.local_sums, output.batch.origin))
        while len(self._launched) > self.lag:
            self._check(self._launched.popleft())

    def finish(self) -> None:
        """Look at all that was launched. Raises NonFiniteError. To be called before the state is used elsewhere."""
        while self._launched:
            self._check(self._launched.popleft())

    def _check(self, one: _Launched) -> None:
        """The losses are global, so all ranks stop together; they tell each other whose rows it was."""
        if one.copied is not None:
            one.copied.synchronize()
        finite = np.isfinite(one.losses.numpy())
        if finite.all():
            return
        tasks = ", ".join(task for task, fine in zip(self._tasks, finite, strict=True) if not fine)
        everywhere: list[str | None] = [None] * self._ranks.world_size
        dist.all_gather_object(everywhere, "" if one.local_sums.isfinite().all() else one.origin)
        files = ", ".join(dict.fromkeys(origin for origin in everywhere if origin)) or "every file of the batch"
        raise NonFiniteError(
            f"step {one.step}: the loss of {tasks} is not finite; rows from {files}. "
            "Look for NaN or huge values there, or lower optim.dense.lr or optim.sparse.lr"
        )
