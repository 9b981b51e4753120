"""Every figure of a comparison in one Parquet file: to look further than its report, or to write the report again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec.comparison.candidates import Architecture
from mtlrec.comparison.capacity import Capacity
from mtlrec.comparison.comparison import Comparison
from mtlrec.comparison.trials import Result
from mtlrec.errors import DataError
from mtlrec.io import one_line, replacing

SCHEMA = pa.schema(
    [
        ("candidate", pa.string()),
        ("fusion", pa.string()),
        ("heads", pa.string()),
        ("weighting", pa.string()),
        ("parameters", pa.int64()),
        ("flops", pa.int64()),
        ("latency_ms", pa.float64()),
        ("learning_rates", pa.float64()),
        ("chosen", pa.bool_()),
        ("seed", pa.int64()),
        ("samples_per_s", pa.float64()),
        ("diverged", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
"""`parameters`, `flops` and `latency_ms` are of what follows the lookup. `learning_rates` is what the job's were
multiplied with, and `chosen` says whether the validation split decided for it. A training that diverged has one row
without a metric, and says why in `diverged`."""
TITLE, METRIC, TUNING_SEEDS = "mtlrec.title", "mtlrec.metric", "mtlrec.tuning_seeds"
"""Keys of the schema's metadata."""


class Published(NamedTuple):
    """What `write_report` needs, except for the diagnoses."""

    comparison: Comparison
    latency_ms: dict[str, float]
    title: str


def write_results(comparison: Comparison, latency_ms: Mapping[str, float], path: Path, title: str) -> None:
    """`path` has its name only when it is whole.

    Args:
        latency_ms: by candidate, of one request (`latency.py`)
    """
    tuning_seeds = max(len(results) for by_factor in comparison.tuning.values() for results in by_factor.values())
    about = {TITLE: title, METRIC: comparison.metric, TUNING_SEEDS: str(tuning_seeds)}
    schema = SCHEMA.with_metadata(about)
    with replacing(path) as part:
        pq.write_table(pa.Table.from_pylist(list(_rows(comparison, latency_ms)), schema=schema), part)


def read_results(path: Path) -> Published:
    """Read what `write_results` wrote. Raises DataError for another file."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({one_line(error)})") from None
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if table.schema.names != SCHEMA.names or not {TITLE, METRIC, TUNING_SEEDS} <= about.keys():
        raise DataError(f"{path}: not the results of a comparison. Give the results.parquet of `mtlrec compare`.")
    architectures: dict[str, Architecture] = {}
    latency_ms: dict[str, float] = {}
    factors: dict[str, float] = {}
    trials: dict[str, dict[float, dict[int, Result]]] = {}
    for row in table.to_pylist():
        name = row["candidate"]
        size = Capacity(row["parameters"], row["flops"])
        architectures[name] = Architecture(name, row["fusion"], row["heads"], row["weighting"], size)
        latency_ms[name] = row["latency_ms"]
        by_seed = trials.setdefault(name, {}).setdefault(row["learning_rates"], {})
        result = by_seed.setdefault(row["seed"], Result({}, row["samples_per_s"], row["diverged"]))
        if row["chosen"]:
            factors[name] = row["learning_rates"]
        if row["metric"] is not None:
            result.metrics.setdefault(row["split"], {}).setdefault(row["task"], {})[row["metric"]] = row["value"]
    results = {name: by_factor[factors[name]] for name, by_factor in trials.items()}
    seeds = list(next(iter(results.values())))
    tuning_seeds = int(about[TUNING_SEEDS])
    tuning = {
        name: {factor: list(by_seed.values())[:tuning_seeds] for factor, by_seed in sorted(by_factor.items())}
        for name, by_factor in trials.items()
    }
    in_order = {name: list(by_seed.values()) for name, by_seed in results.items()}
    comparison = Comparison(list(architectures.values()), seeds, factors, tuning, in_order, about[METRIC])
    return Published(comparison, latency_ms, about[TITLE])


def _rows(comparison: Comparison, latency_ms: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for one in comparison.candidates:
        chosen = comparison.factors[one.name]
        trials = [
            (factor, seed, result)
            for factor, results in comparison.tuning[one.name].items()
            for seed, result in zip(comparison.seeds, results, strict=False)  # the first seeds tried it
            if factor != chosen
        ]
        trials += [
            (chosen, seed, result) for seed, result in zip(comparison.seeds, comparison.results[one.name], strict=True)
        ]
        about = {"candidate": one.name, "fusion": one.fusion, "heads": one.heads, "weighting": one.weighting}
        about |= one.capacity._asdict() | {"latency_ms": latency_ms[one.name]}
        for factor, seed, result in trials:
            trial = about | {
                "learning_rates": factor,
                "chosen": factor == chosen,
                "seed": seed,
                "samples_per_s": result.samples_per_s,
                "diverged": result.diverged,
            }
            for figure in _figures(result):
                yield trial | figure


def _figures(result: Result) -> Iterator[dict[str, Any]]:
    if result.diverged:
        yield {}
    for split, by_task in result.metrics.items():
        for task, by_metric in by_task.items():
            for metric, value in by_metric.items():
                yield {"split": split, "task": task, "metric": metric, "value": value}
