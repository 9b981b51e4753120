"""A profile's trace, split into the time that each stage of a step is exposed for.

Stages overlap: batches are read while the model computes, ids travel while the step before runs. What a stage is worth
is therefore not how long it takes but how long nothing else hides it. On CPU that is what the rank's main thread does
or waits for. On CUDA it is what the GPU does at each moment, computation before communication before copies, and where
it does nothing, what the main thread does meanwhile.

A stage is told by the names of TorchRec's, FBGEMM's and autograd's own events and a few of ours; an event inside
another belongs to the outer one's stage unless it has one of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mtlrec.compat.profiler_events import (
    AUTOGRAD_NODE,
    BACKWARD,
    bytes_handed_over,
    collective_of_event,
    stage_of_event,
)

STEP = "mtlrec::step"
DATA_WAIT = "mtlrec::data_wait"
LOSS = "mtlrec::loss"
SUM_OVER_RANKS = "mtlrec::sum_over_ranks"

STAGES = (
    "data wait",
    "host to device",
    "sparse forward",
    "all-to-all",
    "dense forward",
    "loss",
    "backward",
    "sparse update",
    "all-reduce",
    "dense optimizer",
    "other",
)

OURS = {DATA_WAIT: "data wait", LOSS: "loss", SUM_OVER_RANKS: "all-reduce"}
HIDDEN = ("all-to-all", "all-reduce", "host to device")
"""On a GPU these are exposed only where nothing else runs, and each only where those before it do not."""


class Event(NamedTuple):
    """Times in microseconds; `correlation` ties a GPU's event to the call that launched it; `handed_over` is the bytes
    that a collective was given."""

    name: str
    thread: Any
    start: float
    end: float
    on_gpu: bool = False
    correlation: int | None = None
    handed_over: int = 0


def read_trace(path: Path) -> list[Event]:
    """The events of a Chrome trace as torch.profiler writes it."""
    kinds = {"cpu_op": False, "user_annotation": False, "cuda_runtime": False, "cuda_driver": False}
    kinds |= {"kernel": True, "gpu_memcpy": True, "gpu_memset": True}
    return [
        Event(
            name=one["name"],
            thread=one["tid"],
            start=one["ts"],
            end=one["ts"] + one["dur"],
            on_gpu=kinds[one["cat"]],
            correlation=one.get("args", {}).get("correlation"),
            handed_over=bytes_handed_over(one["name"], one.get("args", {})),
        )
        for one in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        if one.get("ph") == "X" and one.get("cat") in kinds
    ]


class Split(NamedTuple):
    """Seconds of all steps, by stage, which add up to the steps; bytes by collective; how many steps."""

    stages: dict[str, float]
    handed_over: dict[str, int]
    steps: int


def split_steps(events: Sequence[Event]) -> Split:
    """What the steps among the events were spent on. Raises ValueError where there is no step."""
    steps = [event for event in events if event.name == STEP]
    if not steps:
        raise ValueError(f"the trace has no event named {STEP}")
    main = [event for event in events if event.thread == steps[0].thread and not event.on_gpu]
    spans = list(_main_thread(main))
    if any(event.on_gpu for event in events):
        spans = list(_over(spans, _gpu(events)))
    stages = dict.fromkeys(STAGES, 0.0)
    for step in steps:
        for start, end, stage in spans:
            stages[stage] += max(0.0, min(end, step.end) - max(start, step.start)) / 1e6
    handed_over: dict[str, int] = {}
    for event in events:
        if event.handed_over and any(step.start <= event.start < step.end for step in steps):
            kind = collective_of_event(event.name)
            handed_over[kind] = handed_over.get(kind, 0) + event.handed_over
    return Split(stages, handed_over, len(steps))


Span = tuple[float, float, str]


def _main_thread(events: Sequence[Event]) -> Iterable[Span]:
    """Spans that do not overlap, each with the stage of the innermost event that has one.

    What is left of `## backward` after autograd's last node is the wait for DDP's buckets, which has no event. On CUDA
    autograd has a thread of its own, and the main thread's wait for it is backward.
    """
    nodes = [event for event in events if event.name.startswith(AUTOGRAD_NODE)]
    backwards = [event for event in events if event.name.startswith(BACKWARD)]
    ends = [max((n.end for n in nodes if b.start <= n.start and n.end <= b.end), default=b.end) for b in backwards]
    tails = [(end, backward.end) for end, backward in zip(ends, backwards, strict=True)]
    for start, end, _, stage in _innermost(events):
        is_tail = stage == "backward" and any(after <= start < before for after, before in tails)
        yield start, end, "all-reduce" if is_tail else stage


def _innermost(events: Iterable[Event]) -> Iterable[tuple[float, float, Event, str]]:
    """Every moment of a thread in turn, with the innermost event that is open then, and its stage."""
    open_: list[tuple[Event, str]] = []
    now = 0.0
    for event in sorted(events, key=lambda one: (one.start, -one.end)):
        while open_ and open_[-1][0].end <= event.start:
            yield now, open_[-1][0].end, *open_[-1]
            now = open_.pop()[0].end
        if open_:
            yield now, event.start, *open_[-1]
        now = event.start
        open_.append((event, stage_of(event.name) or (open_[-1][1] if open_ else "other")))
    while open_:
        yield now, open_[-1][0].end, *open_[-1]
        now = open_.pop()[0].end


def stage_of(name: str) -> str | None:
    return OURS.get(name) or stage_of_event(name)


def _gpu(events: Sequence[Event]) -> Iterable[Span]:
    """What the GPU did, each in the stage of the call that launched it unless its own name tells."""
    launched: dict[int, str] = {}
    threads: dict[Any, list[Event]] = {}
    for event in events:
        if not event.on_gpu:
            threads.setdefault(event.thread, []).append(event)
    for of_thread in threads.values():
        for _, _, event, stage in _innermost(of_thread):
            if event.correlation is not None:
                launched[event.correlation] = stage
    for event in events:
        if event.on_gpu:
            stage = stage_of(event.name) or launched.get(event.correlation or -1, "other")
            yield event.start, event.end, stage


def _over(idle: Sequence[Span], busy: Iterable[Span]) -> Iterable[Span]:
    """Spans that do not overlap: at every moment the first of computation, communication, copies, and `idle`."""
    ranked = [(1 + HIDDEN.index(span[2]) if span[2] in HIDDEN else 0, span) for span in busy]
    ranked += [(1 + len(HIDDEN), span) for span in idle]
    edges = sorted({edge for _, (start, end, _) in ranked for edge in (start, end)})
    opened = sorted(ranked, key=lambda one: one[1][0])
    active: list[tuple[int, Span]] = []
    position = 0
    for start, end in pairwise(edges):
        while position < len(opened) and opened[position][1][0] <= start:
            active.append(opened[position])
            position += 1
        active = [one for one in active if one[1][1] > start]
        if active:
            yield start, end, min(active, key=lambda one: one[0])[1][2]
