"""Where `mtlrec bench` takes its batches from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

from mtlrec.batch import Batch
from mtlrec.benchmark.random_batches import random_batches
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.errors import ConfigError
from mtlrec.training.loading import loader_of

Source = Literal["train", "memory", "random"]
KEPT = 16


class BenchBatches(Iterator[Batch]):
    """Full ones without end: an epoch's last may be smaller, and is left out.

    Args:
        source: train reads the job's files; memory keeps the first batches of them; random needs no files

    Attributes:
        reads: whether the next one comes from the files, as `can_read` allows, or from those that are kept
        held: how many there are at a time, without those that are kept beside what is read
    """

    def __init__(self, job: JobConfig, ranks: Ranks, source: Source) -> None:
        self._size = job.data.batch_size
        self._loader = None if source == "random" else loader_of(job, "train", ranks, training=True)
        self.steps_per_epoch = self._loader.steps_per_epoch if self._loader else 1
        if self._loader and self._loader.rows < ranks.world_size * self._size:
            raise ConfigError("data.batch_size: the files have fewer rows than a batch for every rank; make it smaller")
        self._open = self._loader.epoch() if self._loader else None
        self.can_read = self.reads = source == "train"
        try:
            kept = self._made_beforehand(job, ranks)
        except Exception:
            self.close()
            raise
        self._kept = itertools.cycle(kept)
        # One in the loader's thread, two in the pipeline.
        self.held = 3 + job.data.prefetch if self.can_read else len(kept)
        if not self.can_read:
            self.close()

    def _made_beforehand(self, job: JobConfig, ranks: Ranks) -> list[Batch]:
        if self._open is None:
            made = random_batches(job, KEPT, seed=job.train.seed + ranks.rank)
            return [batch.pin_memory() for batch in made] if ranks.device.type == "cuda" else made
        return [batch for batch in itertools.islice(self._open, KEPT) if len(batch) == self._size]

    def __next__(self) -> Batch:
        return self._read() if self.reads else next(self._kept)

    def _read(self) -> Batch:
        batch = self._any()
        while len(batch) < self._size:
            batch = self._any()
        return batch

    def _any(self) -> Batch:
        assert self._loader is not None
        assert self._open is not None
        try:
            return next(self._open)
        except StopIteration:
            self._open = self._loader.epoch()
            return next(self._open)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
