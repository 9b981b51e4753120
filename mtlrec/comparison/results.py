"""Every figure of a comparison, one a row, for whoever wants to look further than its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec.comparison.comparison import Comparison
from mtlrec.comparison.trials import Result
from mtlrec.io import replacing

SCHEMA = pa.schema(
    [
        ("candidate", pa.string()),
        ("fusion", pa.string()),
        ("heads", pa.string()),
        ("weighting", pa.string()),
        ("parameters", pa.int64()),
        ("flops", pa.int64()),
        ("learning_rates", pa.float64()),
        ("chosen", pa.bool_()),
        ("seed", pa.int64()),
        ("samples_per_s", pa.float64()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
"""`parameters` and `flops` are of what follows the lookup; `learning_rates` is what the job's were multiplied with, and
`chosen` says whether the valid split decided for it; a training that diverged has no rows."""


def write_results(comparison: Comparison, path: Path) -> None:
    """`path` has its name only when it is whole."""
    with replacing(path) as part:
        pq.write_table(pa.Table.from_pylist(list(_rows(comparison)), schema=SCHEMA), part)


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
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
        for factor, seed, result in trials:
            trial = (
                about | one.capacity._asdict() | {"learning_rates": factor, "chosen": factor == chosen, "seed": seed}
            )
            for figure in _figures(result):
                yield trial | {"samples_per_s": result.samples_per_s} | figure


def _figures(result: Result) -> Iterator[dict[str, Any]]:
    for split, by_task in result.metrics.items():
        for task, by_metric in by_task.items():
            for metric, value in by_metric.items():
                yield {"split": split, "task": task, "metric": metric, "value": value}
