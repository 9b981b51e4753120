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
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from mtlrec.benchmark.batches import BenchBatches, Source
from mtlrec.benchmark.ceilings import Ceilings, lookup_bytes, measure_ceilings, synchronize
from mtlrec.benchmark.memory import memory_gb
from mtlrec.benchmark.timeline import STAGES, STEP, Event, read_trace, split_steps
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.training.step import TrainingStep

WARM_UP, MOST_WARM_UPS, PROFILED = 5, 6, 8
FEW_PAGES = 10_000
"""Of 4 KiB, in a profile: what its events take, with little for tensors."""


@dataclass(frozen=True)
class Benchmark:
    """What was measured; times in milliseconds, memory in GB (1e9 bytes), of this rank where nothing else is said.

    Attributes:
        samples_per_s: of all ranks, without the profiler
        compute_samples_per_s: the same from batches that are kept, in turns with those that are read; without reading,
            the same figure
        split_ms: exposed time per step by stage (`timeline.py`), under the profiler
        split_to_step: all stages together over the steps they are of, times `profiled_to_step`: over a step without the
            profiler, wherever the few steps fall that wait for a row group
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


def bench(
    job: JobConfig, ranks: Ranks, steps: int, source: Source = "train", trace: Path | None = None, rounds: int = 5
) -> Benchmark:
    """Collective. Times `steps` steps, from files as many again without reading; others between and under the profiler.

    All in rounds, and nothing of the model is kept. Where reading is what a job waits for, a round should be longer
    than the row groups that the loader holds decoded, or it lives on these.

    Args:
        source: train reads the job's files as training does; memory takes batches of them that were made beforehand;
            random needs no files
        trace: where the first rank's last profile goes, to be opened in Perfetto or chrome://tracing
        rounds: how many parts the steps are measured in; figures are means and medians over them
    """
    with closing(BenchBatches(job, ranks, source)) as batches, tempfile.TemporaryDirectory() as traces:
        return _Bench(job, ranks, batches, Path(traces)).run(steps, source, trace, rounds)


class _Profile(NamedTuple):
    """`pages`: how many the kernel gave while its steps ran."""

    seconds: list[float]
    trace: Path
    pages: int


class _Turn(NamedTuple):
    """Measured one after the other, in seconds of each step; `computed` is `timed` where nothing is read."""

    timed: list[float]
    computed: list[float]
    profiled: _Profile
    ceilings: Ceilings


class _Bench:
    def __init__(self, job: JobConfig, ranks: Ranks, batches: BenchBatches, traces: Path) -> None:
        self.job, self.ranks, self.batches, self.traces = job, ranks, batches, traces
        self.take_step = TrainingStep(job, ranks, total_steps=10**9, steps_per_epoch=batches.steps_per_epoch)
        self.step, self.settling = 0, job.data.prefetch + 2

    def run(self, steps: int, source: Source, trace: Path | None, rounds: int) -> Benchmark:
        self.take_step.model.module.train()
        for _ in range(WARM_UP):
            self._step()
        example = next(self.batches)
        flops, moved = self._flops(), lookup_bytes(example, self.job, self._replicated())
        memory = memory_gb(self.take_step, self.batches.held, example)
        self._warm_up_profiler()
        turns = [self._turn(count) for count in _divided(steps, min(rounds, steps))]
        shapes = self._profiled(steps=1, shapes=True)
        profiles = [turn.profiled for turn in turns]
        splits = [split_steps(events) for events in self._read(profiles, trace)]
        (communicated,) = self._read([shapes], None)
        timed = [second for turn in turns for second in turn.timed]
        profiled = [second for one in profiles for second in one.seconds]
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
            samples_per_s=self._rate(timed),
            compute_samples_per_s=self._rate([second for turn in turns for second in turn.computed]),
            step_p50_ms=1e3 * median,
            step_p99_ms=1e3 * sorted(timed)[math.ceil(0.99 * len(timed)) - 1],
            split_ms={stage: 1e3 * s for stage, s in split_s.items()},
            split_to_step=_split_to_step(split_s.values(), profiled, timed),
            profiled_to_step=statistics.median(profiled) / median,
            communicated_mb={kind: size / 1e6 for kind, size in split_steps(communicated).handed_over.items()},
            memory_gb=memory,
            flops_per_step=flops,
            mfu=_mfu(flops, turns),
            embedding_gb_s=moved / exposed / 1e9 if exposed else 0.0,
            ceilings=Ceilings(*map(statistics.median, zip(*(astuple(turn.ceilings) for turn in turns), strict=True))),
        )

    def _warm_up_profiler(self) -> None:
        """Under a profiler tensors and events share malloc's holes, and for some steps the kernel has to give more
        pages, which takes time; a training without a profiler has no such steps."""
        for _ in range(MOST_WARM_UPS):
            pages = torch.tensor(self._profiled(PROFILED).pages, device=self.ranks.device)
            dist.all_reduce(pages, dist.ReduceOp.MAX)
            if pages.item() < FEW_PAGES:
                return

    def _turn(self, steps: int) -> _Turn:
        """All that is compared, so that what else runs on the machine slows it alike. Traces are read when all turns
        are over: a loader would run ahead meanwhile."""
        self._settle()
        computed = timed = self._times(steps)
        profiled = self._profiled(PROFILED)
        if self.batches.can_read:
            self.batches.reads = False
            self._settle()
            computed = self._times(steps)
            self.batches.reads = True
        dist.barrier()
        return _Turn(timed, computed, profiled, measure_ceilings(self.job, self.ranks.device))

    def _rate(self, timed: list[float]) -> float:
        return self.ranks.world_size * self.job.data.batch_size * len(timed) / sum(timed)

    def _settle(self) -> None:
        """Ranks meet, and the batches that a loader has made while the steps stood still are taken."""
        dist.barrier()
        for _ in range(self.settling):
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
            before = _pages_given()
            self._settle()  # the first step under a profiler is a slow one; these spans are left out when it is read
            seconds = self._times(steps)
            synchronize(self.ranks.device)
            pages = _pages_given() - before
        trace = self.traces / f"{self.step}.json"
        profiler.export_chrome_trace(str(trace))
        return _Profile(seconds, trace, pages)

    def _read(self, profiles: list[_Profile], trace: Path | None) -> Iterator[list[Event]]:
        """Of each its events; rank 0 keeps the last as `trace`."""
        for one in profiles:
            events = read_trace(one.trace)
            if trace is not None and self.ranks.is_first and one is profiles[-1]:
                shutil.copyfile(one.trace, trace)
            settling = sorted(event.start for event in events if event.name == STEP)[: self.settling]
            yield [event for event in events if event.name != STEP or event.start not in settling]

    def _replicated(self) -> set[str]:
        tables = self.take_step.model.plan.tables
        return {name for name, table in tables.items() if table.sharding_type == "data_parallel"}

    def _flops(self) -> float:
        with FlopCounterMode(display=False) as counter:
            self._step()
        return float(counter.get_total_flops())


def _mfu(flops: float, turns: list[_Turn]) -> float:
    return statistics.median(flops / statistics.median(one.timed) / (1e12 * one.ceilings.tflops) for one in turns)


def _pages_given() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _split_to_step(stages: Iterable[float], profiled: list[float], timed: list[float]) -> float:
    return sum(stages) / statistics.mean(profiled) * statistics.median(profiled) / statistics.median(timed)


def _divided(number: int, parts: int) -> list[int]:
    return [number * (i + 1) // parts - number * i // parts for i in range(parts)]
