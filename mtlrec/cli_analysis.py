"""`mtlrec compare` and `mtlrec diagnose`: which architecture wins on one's own data, and what a model does inside."""

from __future__ import annotations

import json
import math
import operator
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mtlrec.cli_data import wide_console
from mtlrec.cli_score import Json, Run, Set, check_split
from mtlrec.config.errors import ConfigError
from mtlrec.config.file import job_of, load_config

if TYPE_CHECKING:
    from mtlrec.analysis.capacity import Measure
    from mtlrec.analysis.cells import Cell, Result
    from mtlrec.analysis.comparison import Comparison
    from mtlrec.analysis.contenders import Contender
    from mtlrec.training.diagnosis import Diagnosis
    from mtlrec.training.slices import Slices


class Match(StrEnum):
    parameters = "parameters"
    flops = "flops"
    none = "none"

    @property
    def measure(self) -> Measure | None:
        measures: dict[Match, Measure | None] = {Match.parameters: "parameters", Match.flops: "flops"}
        return measures.get(self)


class Metric(StrEnum):
    auc = "auc"
    entire_auc = "entire_auc"
    ne = "ne"


BATCHES = 50
SliceBy = Annotated[
    str | None, typer.Option("--slice", help="A column of the files: each task's AUC within its values.")
]
EVERY_FUSION = "single_task,shared_bottom,asymmetric,cross_stitch,customized,mmoe,ple,adatt_sp,adatt"


def compare(
    config: Annotated[str, typer.Argument(help="A YAML job, or the name of a recipe (see `mtlrec recipes`).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The comparison's folder; given again, it goes on.")],
    fusion: Annotated[str, typer.Option(help="Fusion kinds, with commas between.")] = EVERY_FUSION,
    heads: Annotated[str, typer.Option(help="Kinds of heads; by default the job's.")] = "",
    weighting: Annotated[str, typer.Option(help="Kinds of loss weighting; by default the job's.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each architecture.")] = 5,
    learning_rates: Annotated[
        str, typer.Option(help="What the job's are multiplied with; the best on the valid split is taken.")
    ] = "0.3,1,3",
    tuning_seeds: Annotated[
        int, typer.Option(min=1, help="How many of the seeds try every learning rate; more choose with less luck.")
    ] = 1,
    match: Annotated[
        Match, typer.Option(help="What is equal behind the tables: the experts' widths are chosen so.")
    ] = Match.parameters,
    metric: Annotated[
        Metric, typer.Option(help="Of binary tasks; regressions have their mean squared error.")
    ] = Metric.auc,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time; by default one per core or GPU.")
    ] = None,
    slice_by: SliceBy = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train the job's data under several architectures of one size, with several seeds, and say which is better where.

    What is finished is kept in --output and not run again."""
    if "RANK" in os.environ:
        raise ConfigError("compare starts trainings of its own, a process each; call it without torchrun")
    job = load_config(config, set_ or [])
    for split, files in (("valid", job.data.valid), ("test", job.data.test)):
        if not files:
            raise ConfigError(f"data.{split}: a comparison wants its files: the first chooses, the second judges")
    factors = _numbers(learning_rates)

    import torch

    from mtlrec.analysis.cells import Cells
    from mtlrec.analysis.comparison import compare as run
    from mtlrec.analysis.contenders import contenders
    from mtlrec.analysis.latency import latency_ms
    from mtlrec.analysis.markdown import write_markdown
    from mtlrec.analysis.report import write_report
    from mtlrec.analysis.results import write_results
    from mtlrec.training.telemetry import jsonable

    found = contenders(job, _words(fusion), _words(heads), _words(weighting), match.measure)
    at_a_time = jobs or torch.cuda.device_count() or os.cpu_count() or 1
    cells = Cells(output, found, at_a_time)
    tuning_seeds = min(tuning_seeds, seeds)
    with Progress(found, len(factors) * tuning_seeds + seeds - tuning_seeds) as progress:
        comparison = run(cells, factors, range(seeds), progress, metric.value, tuning_seeds)
    write_results(comparison, output / "results.parquet")
    latency = latency_ms({one.name: one.job for one in found})
    first = {one.name: cells.run_of(one.name, comparison.factors[one.name], 0) for one in found}
    diagnoses = {name: _diagnosed(run, "valid", BATCHES, slice_by) for name, run in first.items()}
    write_report(comparison, latency, output / "report.html", job.name, diagnoses)
    write_markdown(comparison, output / "report.md", job.name)
    if as_json:
        print(json.dumps(jsonable(summary(comparison))))
        return
    console = wide_console()
    console.print(ranking_table(comparison))
    if not comparison.judged:
        console.print("nothing is judged: no task has enough positives in the test split")
    for verdict in comparison.verdicts():
        console.print(verdict.text, soft_wrap=True)
    print(f"{output / 'report.html'}; every figure: {output / 'results.parquet'}", file=sys.stderr)


def diagnose(
    run: Run,
    split: Annotated[str, typer.Option(help="valid, test or train.")] = "valid",
    batches: Annotated[int, typer.Option(min=1, help="How many batches of it to look at.")] = BATCHES,
    slice_by: SliceBy = None,
    as_json: Json = False,
) -> None:
    """Look into a trained model: what its gates give the experts, which experts are dead, whether tasks' gradients
    agree, which rows its tables are asked for, whether its probabilities hold; and what may be done about it."""
    from mtlrec.analysis.warnings import warnings_of
    from mtlrec.training.telemetry import jsonable

    check_split(split)
    found = _diagnosed(run, split, batches, slice_by)
    if os.environ.get("RANK", "0") != "0":
        return
    warnings = warnings_of(found)
    if as_json:
        print(json.dumps(jsonable(asdict(found) | {"warnings": warnings})))
        return
    console = wide_console()
    for table in diagnosis_tables(found):
        console.print(table)
    for line in warnings or ["nothing to warn of"]:
        console.print(line, soft_wrap=True)


def _diagnosed(run: Path, split: str, batches: int, slice_by: str | None) -> Diagnosis:
    from mtlrec.distributed.process_group import process_group
    from mtlrec.training.diagnosis import diagnose_run
    from mtlrec.training.loading import loader_of
    from mtlrec.training.sharded import load_run

    job = job_of(run)
    with process_group(job.train.device, job.train.timeout_s) as ranks:
        model = load_run(job, run, ranks)
        keep = [slice_by] if slice_by else []
        loader = loader_of(job, split, ranks, trained_on=model.trained_on, keep=keep)
        return diagnose_run(model, loader, job, ranks, batches, slice_by)


def diagnosis_tables(found: Diagnosis) -> Iterator[Table]:
    for level in found.levels:
        table = Table("gate", *level.experts, "entropy", "one over 0.9", title=f"{level.name}, {found.rows:,} rows")
        for index, gate in enumerate(level.gates):
            given = zip(level.gate[index], level.deviation[index], level.weight[index], strict=True)
            cells = [
                f"{mean:.2f} ± {spread:.2f}" + (f" ({weight:.2f})" if abs(weight - mean) > 1e-6 else "")
                for mean, spread, weight in given
            ]
            table.add_row(gate, *cells, f"{level.entropy[index]:.2f}", f"{level.peaked[index]:.0%}")
        table.add_section()
        table.add_row("output norm", *(f"{norm:.2f}" for norm in level.norm))
        table.add_row("zeros", *(f"{zeros:.0%}" for zeros in level.zeros))
        if level.weight != level.gate:
            table.caption = "in brackets: with the native residual"
        yield table
    yield from _gradient_and_table_tables(found)
    if found.curves:
        yield _curves_table(found)
    if found.slices:
        yield _slices_table(found.slices)


def _gradient_and_table_tables(found: Diagnosis) -> Iterator[Table]:
    table = Table("", "norm", *found.tasks, title="gradients of the tasks on the pooled embeddings: norms, cosines")
    for task, norm, cosines in zip(found.tasks, found.gradient_norm, found.gradient_cosine, strict=True):
        table.add_row(task, f"{norm:.3g}", *(f"{cosine:.2f}" for cosine in cosines))
    yield table
    columns = ("table", "rows", "seen", "lookups", "to the hottest 1%", "hot", "seen", "not seen")
    table = Table(*columns, title="tables: what is looked up, and rows' lengths over those they were drawn with")
    for one in found.tables:
        norms = [_number(norm / one.drawn_norm, ".1f") for norm in (one.hot_norm, one.seen_norm, one.other_norm)]
        counts = [f"{count:,}" for count in (one.rows, one.seen, one.lookups)]
        table.add_row(one.name, *counts, _number(one.hot_share, ".0%"), *norms)
    yield table


def _curves_table(found: Diagnosis) -> Table:
    title = "predicted and observed shares of positives, by fifths of the rows in the order of the prediction"
    table = Table("task", "lowest", "second", "third", "fourth", "highest", title=title)
    for task, curve in found.curves.items():
        cells = []
        for part in range(5):
            buckets = slice(part * len(curve.rows) // 5, (part + 1) * len(curve.rows) // 5)
            rows = sum(curve.rows[buckets]) or math.nan
            predicted, observed = (
                sum(map(operator.mul, of[buckets], curve.rows[buckets])) / rows
                for of in (curve.predicted, curve.observed)
            )
            cells.append(f"{_number(predicted, '.3f')}, {_number(observed, '.3f')}")
        table.add_row(task, *cells)
    return table


def _slices_table(slices: Slices) -> Table:
    table = Table(slices.column, "rows", *slices.tasks, title=f"AUC within values of {slices.column} (positives)")
    for index, name in enumerate(slices.names):
        cells = [
            f"{_number(auc[index], '.4f')} ({positives[index]:,})"
            for auc, positives in zip(slices.auc, slices.positives, strict=True)
        ]
        table.add_row(name, f"{slices.rows[index]:,}", *cells)
    return table


def _number(value: float, kind: str) -> str:
    return "-" if math.isnan(value) else format(value, kind)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[float]:
    try:
        found = [float(word) for word in _words(text)]
    except ValueError:
        found = []
    if not found or not all(0 < number < float("inf") for number in found):
        raise ConfigError(f"--learning-rates {text}: positive numbers with commas between, such as 0.3,1,3")
    return list(dict.fromkeys(found))


class Progress:
    """One table that grows, on a terminal; a line for every training that ends, in a log."""

    def __init__(self, contenders: list[Contender], each: int) -> None:
        self._each = each
        self._done = dict.fromkeys((one.name for one in contenders), 0)
        self._factor: dict[str, float] = {}
        self._last: dict[str, str] = {}
        self._live = Live(console=Console(stderr=True), auto_refresh=False) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def ended(self, cell: Cell, result: Result) -> None:
        from mtlrec.training.telemetry import one_line

        self._done[cell.contender] += 1
        said = "diverged" if result.diverged else one_line(result.metrics["test"])
        self._last[cell.contender] = said
        total = self._each * len(self._done)
        self._show(f"{sum(self._done.values())} of {total}: {cell}: {said}")

    def chose(self, contender: str, factor: float) -> None:
        self._factor[contender] = factor
        self._show(f"{contender}: learning rates x{factor:g}, by the valid split")

    def _show(self, line: str) -> None:
        if self._live is None:
            print(line, file=sys.stderr, flush=True)
            return
        table = Table("", "trainings", "learning rates", "the last, on the test split")
        for name, done in self._done.items():
            factor = f"x{self._factor[name]:g}" if name in self._factor else ""
            table.add_row(name, f"{done} of {self._each}", factor, self._last.get(name, ""))
        self._live.update(table, refresh=True)


def ranking_table(comparison: Comparison) -> Table:
    seeds = len(comparison.seeds)
    over = f"gain over {comparison.baseline}, better above 0, and its 95 % interval"
    title = f"mean of {seeds} seeds on the test split; {over}"
    few = comparison.undecidable
    caption = f"undecidable, few positives: {', '.join(few)}" if few else None
    table = Table("mean rank", title=title, caption=caption)
    for column in ("", "parameters", "samples/s"):
        table.add_column(column, no_wrap=True)
    for task, metric in comparison.tasks.items():
        table.add_column(f"{task}, {metric}", justify="right")
    by_name = {one.name: one for one in comparison.contenders}
    for name, rank in comparison.ranking():
        results = comparison.results[name]
        rate = sum(result.samples_per_s for result in results) / len(results)
        cells = [_cell(comparison, name, task) for task in comparison.tasks]
        table.add_row(
            f"{rank:.1f}" if comparison.judged else "",
            name,
            f"{by_name[name].capacity.parameters:,}",
            f"{rate:,.0f}",
            *cells,
        )
    return table


def _cell(comparison: Comparison, name: str, task: str) -> str:
    values = comparison.values(name, task)
    mean = f"{sum(values) / len(values):.4f}"
    if name == comparison.baseline:
        return mean
    found = comparison.gain(name, task)
    return f"{mean} ({found.mean:+.4f} ± {found.half_width:.4f})"


def summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "baseline": comparison.baseline,
        "seeds": len(comparison.seeds),
        "ranking": [{"contender": name, "mean_rank": rank} for name, rank in comparison.ranking()],
        "undecidable": comparison.undecidable,
        "learning_rates": comparison.factors,
        "gains": {
            one.name: {task: _gain(comparison, one.name, task) for task in comparison.tasks}
            for one in comparison.contenders
            if one.name != comparison.baseline
        },
        "verdicts": [verdict.text for verdict in comparison.verdicts()],
    }


def _gain(comparison: Comparison, name: str, task: str) -> dict[str, float | None]:
    mean, half_width = comparison.gain(name, task)
    return {"mean": mean, "half_width": None if half_width == float("inf") else half_width}
