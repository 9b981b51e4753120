"""How fast a job trains on these ranks, and what its steps are spent on."""

from __future__ import annotations

import gc
import itertools
import math
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.data.random_batches import random_batches
from mtlrec.distributed.process_group import Ranks
from mtlrec.training.ceilings import Ceilings, lookup_bytes, measure_ceilings, synchronise
from mtlrec.training.loading import loader_of
from mtlrec.training.step import TrainingStep
from mtlrec.training.timeline import STAGES, STEP, Event, read_trace, split_steps

Source = Literal["train", "memory", "random"]
WARM_UP, ROUNDS, PROFILED, KEPT_BATCHES = 5, 5, 8, 16


@dataclass(frozen=True)
class Benchmark:
    """What was measured; times in milliseconds, memory in GB (1e9 bytes), of this rank where nothing else is said.

    Attributes:
        samples_per_s: of all ranks, without the profiler
        compute_samples_per_s: the same from batches that are kept, in turns with those that are read; without reading,
            the same figure
        split_ms: exposed time per step by stage (`timeline.py`), under the profiler
        split_to_step: all stages together over the mean step without the profiler
        profiled_to_step: the median step under the profiler over that without
        communicated_mb: what it hands to each kind of collective in a step
        flops_per_step: of the matrix products that run, forward and backward: recomputed ones and columns of zeros too
        mfu: flops_per_step in the median step over the ceiling, which is measured in turns with the steps
        embedding_gb_s: bytes of the rows that lookup and update move, over the time that these are exposed for, the
            sorting of ids for the ranks with them; replicated tables, which the dense optimizer updates, count as read
    """

    job: str
    source: Source
    world_size: int
    threads: int
    device: str
    batch_size: int
    steps: int
    samples_per_s: float
    compute_samples_per_s: float
    step_p50_ms: float
    step_p99_ms: float
    split_ms: dict[str, float]
    split_to_step: float
    profiled_to_step: float
    communicated_mb: dict[str, float]
    memory_gb: dict[str, float]
    flops_per_step: float
    mfu: float
    embedding_gb_s: float
    ceilings: Ceilings


def bench(job: JobConfig, ranks: Ranks, steps: int, source: Source = "train", trace: Path | None = None) -> Benchmark:
    """Collective. Trains `steps` steps and a few more under the profiler, in turns, and keeps nothing of the model.

    Args:
        source: train reads the job's files as training does; memory takes batches of them that were made beforehand;
            random needs no files
        trace: where the first rank's last profile goes, to be opened in Perfetto or chrome://tracing
    """
    with closing(_Batches(job, ranks, source)) as batches:
        return _Bench(job, ranks, batches).run(steps, source, trace)


class _Batches(Iterator[Batch]):
    """Full ones without end: an epoch's last may be smaller, and is left out.

    Attributes:
        reads: whether the next one comes from the files, as `can_read` allows, or from those that are kept
        rows: how many were handed out
        held: how many batches there are at a time
    """

    def __init__(self, job: JobConfig, ranks: Ranks, source: Source) -> None:
        self.rows, self._size = 0, job.data.batch_size
        self._loader = None if source == "random" else loader_of(job, "train", ranks, training=True)
        self.steps_per_epoch = self._loader.steps_per_epoch if self._loader else 1
        if self._loader and self._loader.rows < ranks.world_size * job.data.batch_size:
            raise ValueError("data.batch_size: the files have fewer rows than a batch for every rank; make it smaller")
        self._open = self._loader.epoch() if self._loader else None
        self._kept = itertools.cycle(self._made_beforehand(job, ranks))
        self.can_read = self.reads = source == "train"
        self.held = 2 + job.data.prefetch if self.can_read else KEPT_BATCHES
        if not self.can_read:
            self.close()

    def _made_beforehand(self, job: JobConfig, ranks: Ranks) -> list[Batch]:
        if self._open is None:
            made = random_batches(job, KEPT_BATCHES, seed=job.train.seed + ranks.rank)
            return [batch.pin_memory() for batch in made] if ranks.device.type == "cuda" else made
        some = list(itertools.islice(self._open, KEPT_BATCHES))
        return [batch for batch in some if len(batch) == job.data.batch_size]

    def __next__(self) -> Batch:
        batch = self._read() if self.reads else next(self._kept)
        self.rows += len(batch)
        return batch

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


class _Window(NamedTuple):
    """Consecutive steps: the seconds of each, and the rows that this rank took."""

    seconds: list[float]
    rows: int


class _Profile(NamedTuple):
    seconds: list[float]
    profiler: profile


class _Turn(NamedTuple):
    """Measured one after the other; `computed` is `window` where nothing is read."""

    window: _Window
    computed: _Window
    profiled: _Profile
    ceilings: Ceilings


class _Bench:
    def __init__(self, job: JobConfig, ranks: Ranks, batches: _Batches) -> None:
        self.job, self.ranks, self.batches = job, ranks, batches
        self.take_step = TrainingStep(job, ranks, total_steps=10**9, steps_per_epoch=batches.steps_per_epoch)
        self.step = 0

    def run(self, steps: int, source: Source, trace: Path | None) -> Benchmark:
        self.take_step.model.module.train()
        for _ in range(WARM_UP):
            self._step()
        example = next(self.batches)
        flops, moved, memory = self._flops(), lookup_bytes(example, self.job, self._replicated()), self._memory(example)
        turns = self._in_turns(steps)
        windows, profiles = [turn.window for turn in turns], [turn.profiled for turn in turns]
        shapes = self._profiled(steps=1, shapes=True)
        splits = [split_steps(events) for events in self._read(profiles, trace)]
        (communicated,) = self._read([shapes], None)
        timed = [second for window in windows for second in window.seconds]
        median = statistics.median(timed)
        split_s = {stage: statistics.mean(s.stages[stage] / s.steps for s in splits) for stage in STAGES}
        exposed = split_s["sparse forward"] + split_s["sparse update"]
        return Benchmark(
            job=self.job.name,
            source=source,
            world_size=self.ranks.world_size,
            threads=torch.get_num_threads(),
            device=self.ranks.device.type,
            batch_size=self.job.data.batch_size,
            steps=steps,
            samples_per_s=self._rate(windows),
            compute_samples_per_s=self._rate([turn.computed for turn in turns]),
            step_p50_ms=1e3 * median,
            step_p99_ms=1e3 * sorted(timed)[math.ceil(0.99 * len(timed)) - 1],
            split_ms={stage: 1e3 * s for stage, s in split_s.items()},
            split_to_step=sum(split_s.values()) / statistics.mean(timed),
            profiled_to_step=statistics.median(second for one in profiles for second in one.seconds) / median,
            communicated_mb={kind: size / 1e6 for kind, size in split_steps(communicated).handed_over.items()},
            memory_gb=memory,
            flops_per_step=flops,
            mfu=statistics.median(
                flops / statistics.median(turn.window.seconds) / (1e12 * turn.ceilings.tflops) for turn in turns
            ),
            embedding_gb_s=moved / exposed / 1e9 if exposed else 0.0,
            ceilings=Ceilings(*map(statistics.median, zip(*(astuple(turn.ceilings) for turn in turns), strict=True))),
        )

    def _in_turns(self, steps: int) -> list[_Turn]:
        """So that what else runs on the machine slows all alike. Traces are read later: a loader would run ahead."""
        return [self._turn(count) for count in _divided(steps, ROUNDS)]

    def _turn(self, steps: int) -> _Turn:
        self._settle()
        computed = window = self._window(steps)
        profiled = self._profiled(PROFILED)
        if self.batches.can_read:
            self.batches.reads = False
            self._settle()
            computed = self._window(steps)
            self.batches.reads = True
        dist.barrier()
        return _Turn(window, computed, profiled, measure_ceilings(self.job, self.ranks.device))

    def _window(self, steps: int) -> _Window:
        rows = self.batches.rows
        seconds = self._times(steps)
        return _Window(seconds, self.batches.rows - rows)

    def _rate(self, windows: list[_Window]) -> float:
        seconds = sum(second for window in windows for second in window.seconds)
        return self.ranks.world_size * sum(window.rows for window in windows) / seconds

    def _settle(self) -> None:
        """Ranks meet, and what a loader has made while the steps stood still is taken."""
        dist.barrier()
        for _ in range(self.job.data.prefetch + 2):
            self._step()

    def _step(self) -> None:
        with record_function(STEP):
            self.take_step(self.batches, self.step)
        self.step += 1

    def _times(self, count: int) -> list[float]:
        """Seconds of each of so many steps. On CUDA they are told by events, which wait for nothing."""
        if self.ranks.device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
            marks[0].record()
            for mark in marks[1:]:
                self._step()
                mark.record()
            torch.cuda.synchronize(self.ranks.device)
            return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]
        ends = [time.perf_counter()]
        for _ in range(count):
            self._step()
            ends.append(time.perf_counter())
        return [b - a for a, b in itertools.pairwise(ends)]

    def _profiled(self, steps: int, shapes: bool = False) -> _Profile:
        """`shapes`: of what is communicated too, which makes the steps a few percent slower."""
        activities = [ProfilerActivity.CPU]
        if self.ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        gc.collect()  # what the steps would otherwise stop for
        with profile(activities=activities, record_shapes=shapes) as profiler:
            self._step()  # the first under a profiler is a slow one; its span is left out when it is read
            seconds = self._times(steps)
            synchronise(self.ranks.device)
        return _Profile(seconds, profiler)

    def _read(self, profiles: list[_Profile], trace: Path | None) -> Iterator[list[Event]]:
        """Of each its events; rank 0 keeps the last as `trace`."""
        for one in profiles:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                one.profiler.export_chrome_trace(str(path))
                events = read_trace(path)
                if trace is not None and self.ranks.is_first and one is profiles[-1]:
                    shutil.copyfile(path, trace)
            first = min(event.start for event in events if event.name == STEP)
            yield [event for event in events if (event.name, event.start) != (STEP, first)]

    def _replicated(self) -> set[str]:
        tables = self.take_step.model.plan.tables
        return {name for name, table in tables.items() if table.sharding_type == "data_parallel"}

    def _flops(self) -> float:
        with FlopCounterMode(display=False) as counter:
            self._step()
        return float(counter.get_total_flops())

    def _memory(self, batch: Batch) -> dict[str, float]:
        """Of what is held from step to step, and the most that the process has ever held."""
        model, optimizers = self.take_step.model.module, self.take_step.optimizers
        parameters = dict(model.named_parameters())
        dense = {name: p for name, p in parameters.items() if ".tables." not in name}
        tables = [p for name, p in parameters.items() if name not in dense]
        state = optimizers.state()
        states = {part: _bytes(state.get(part, {})) for part in ("tables", "dense")}
        parts = {
            "tables": sum(p.nbytes for p in tables),
            "tables' optimizer": states["tables"],
            "replicated tables' gradients": sum(p.grad.nbytes for p in tables if p.grad is not None),
            "dense parameters": sum(p.nbytes for p in dense.values()),
            "dense gradients": sum(p.grad.nbytes for p in dense.values() if p.grad is not None),
            "dense optimizer": states["dense"],
            "batches, of the host": self.batches.held * _bytes(batch),
        }
        if self.ranks.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.ranks.device)
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {name: size / 1e9 for name, size in (parts | {"peak of the process": peak}).items()}


def _bytes(held: object) -> int:
    """Of the tensors in mappings, lists, sharded tensors and batches; a shard counts where it lies."""
    match held:
        case ShardedTensor():
            return sum(shard.tensor.nbytes for shard in held.local_shards())
        case torch.Tensor():
            return held.nbytes
        case dict():
            return sum(map(_bytes, held.values()))
        case list() | tuple():
            return sum(map(_bytes, held))
        case Batch():
            of_ids = [held.sparse.values(), held.sparse.lengths(), held.sparse.weights_or_none()]
            return _bytes([held.dense, held.labels, held.label_mask, held.weights, held.groups, *of_ids])
    return 0


def _divided(number: int, parts: int) -> list[int]:
    return [one for one in (number * (i + 1) // parts - number * i // parts for i in range(parts)) if one]
