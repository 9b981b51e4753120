"""How long one request takes behind the lookup, side by side for several architectures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from mtlrec.comparison.capacity import model_and_inputs
from mtlrec.config import JobConfig

ROWS, ROUNDS = 500, 30
"""A request's candidates, and how often each is timed."""


def latency_ms(jobs: Mapping[str, JobConfig]) -> dict[str, float]:
    """Medians over rounds in which all take turns, of bottom, fusion layer and heads in eager mode on the CPU."""
    calls = {name: model_and_inputs(job, ROWS) for name, job in jobs.items()}
    took: dict[str, list[float]] = {name: [] for name in jobs}
    with torch.no_grad():
        for _ in range(ROUNDS + 1):
            for name, (model, inputs) in calls.items():
                started = time.perf_counter()
                model(*inputs)
                took[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(times[1:]) for name, times in took.items()}
