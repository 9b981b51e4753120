"""`mtlrec compare`: which architecture wins on one's own data, by how much, and how sure that is."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mtlrec.cli.data import wide_console
from mtlrec.cli.diagnose import BATCHES, SliceBy, diagnosed
from mtlrec.cli.score import Json, Set
from mtlrec.config.file import load_config
from mtlrec.errors import ConfigError

if TYPE_CHECKING:
    from mtlrec.comparison.candidates import Candidate
    from mtlrec.comparison.capacity import Measure
    from mtlrec.comparison.comparison import Comparison
    from mtlrec.comparison.trials import Result, Trial, Trials
    from mtlrec.diagnosis.diagnosis import Diagnosis


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


EVERY_FUSION = "single_task,shared_bottom,asymmetric,cross_stitch,customized,mmoe,ple,adatt_sp,adatt"


def compare(
    config: Annotated[str, typer.Argument(help="A YAML job, or the name of a recipe (see `mtlrec recipes`).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The comparison's folder; given again, it goes on.")],
    fusion: Annotated[str, typer.Option(help="Fusion kinds, with commas between.")] = EVERY_FUSION,
    heads: Annotated[str, typer.Option(help="Kinds of heads; by default the job's.")] = "",
    weighting: Annotated[str, typer.Option(help="Kinds of loss weighting; by default the job's.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each architecture.")] = 5,
    learning_rates: Annotated[
        str,
        typer.Option(help="What the job's are multiplied with, commas between; the best on the valid split is taken."),
    ] = "0.3,1,3",
    tuning_seeds: Annotated[
        int, typer.Option(min=1, help="How many of the seeds try every learning rate; more choose with less luck.")
    ] = 1,
    match: Annotated[
        Match, typer.Option(help="What is equal after the embedding lookup: the experts' widths are chosen so.")
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
    factors, fusions = _numbers(learning_rates), _words(fusion)
    if not fusions:
        raise ConfigError(f"--fusion: names no kind; there are {EVERY_FUSION}")

    import torch

    from mtlrec.comparison.candidates import candidates
    from mtlrec.comparison.comparison import compare as run
    from mtlrec.comparison.trials import Trials
    from mtlrec.evaluation.slices import check_column
    from mtlrec.metrics.table import jsonable

    if slice_by is not None:
        check_column(job, "valid", slice_by)
    found = candidates(job, fusions, _words(heads), _words(weighting), match.measure)
    at_a_time = jobs or torch.cuda.device_count() or os.cpu_count() or 1
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; name a folder")
    trials = Trials(output, found, at_a_time)
    tuning_seeds = min(tuning_seeds, seeds)
    with _sigterm_interrupts(), trials:
        with Progress(found, len(factors) * tuning_seeds + seeds - tuning_seeds) as progress:
            comparison = run(trials, factors, range(seeds), progress, metric.value, tuning_seeds)
        _write(comparison, trials, job.name, slice_by)
    if as_json:
        print(json.dumps(jsonable(summary(comparison))))
    else:
        _print(comparison)
        print(f"{output / 'report.html'}; every figure: {output / 'results.parquet'}", file=sys.stderr)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """So that the trainings that were started end too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(comparison: Comparison, trials: Trials, title: str, slice_by: str | None) -> None:
    """The table, the text and the page, what takes longest last."""
    from mtlrec.comparison.latency import latency_ms
    from mtlrec.comparison.markdown import write_markdown
    from mtlrec.comparison.report import write_report
    from mtlrec.comparison.results import write_results

    write_results(comparison, trials.folder / "results.parquet")
    write_markdown(comparison, trials.folder / "report.md", title)
    latency = latency_ms({one.name: one.job for one in comparison.candidates})
    first = {name: trials.run_of(name, factor, comparison.seeds[0]) for name, factor in comparison.factors.items()}
    diagnoses = {name: _looked_into(run, slice_by) for name, run in first.items()}
    write_report(comparison, latency, trials.folder / "report.html", title, diagnoses)


def _print(comparison: Comparison) -> None:
    from mtlrec.comparison.report import answer, edge

    console = wide_console()
    console.print(ranking_table(comparison))
    for line in filter(None, [*answer(comparison), edge(comparison)]):
        console.print(line, soft_wrap=True)
    best = len(comparison.candidates) - 1
    for verdict in comparison.verdicts()[:best]:
        console.print(f"- {verdict.text}", soft_wrap=True)


def _looked_into(run: Path, slice_by: str | None) -> Diagnosis:
    from mtlrec.errors import CheckpointError

    try:
        return diagnosed(run, "valid", BATCHES, slice_by)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or remove {run}, and compare trains it again") from None


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

    def __init__(self, candidates: list[Candidate], each: int) -> None:
        self._each = each
        self._done = dict.fromkeys((one.name for one in candidates), 0)
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

    def ended(self, trial: Trial, result: Result, kept: bool) -> None:
        from mtlrec.metrics.table import metrics_line

        self._done[trial.candidate] += 1
        said = "diverged" if result.diverged else f"valid: {metrics_line(result.metrics['valid'])}"
        self._last[trial.candidate] = said
        total = self._each * len(self._done)
        self._show(f"{sum(self._done.values())} of {total}: {trial}{' (kept)' if kept else ''}: {said}")

    def chose(self, candidate: str, factor: float) -> None:
        self._factor[candidate] = factor
        self._show(f"{candidate}: learning rates x{factor:g}, by the valid split")

    def _show(self, line: str) -> None:
        if self._live is None:
            print(line, file=sys.stderr, flush=True)
            return
        table = Table("", "trainings", "learning rates", "the last")
        for name, done in self._done.items():
            factor = f"x{self._factor[name]:g}" if name in self._factor else ""
            table.add_row(name, f"{done} of {self._each}", factor, self._last.get(name, ""))
        self._live.update(table, refresh=True)


def ranking_table(comparison: Comparison) -> Table:
    seeds = len(comparison.seeds)
    over = f"gain over {comparison.baseline}, better above 0, and its 95 % interval"
    title = f"mean of {seeds} seeds on the test split; {over}"
    table = Table("mean rank", title=title, caption=" ".join(comparison.not_judged) or None)
    for column in ("", "parameters", "samples/s"):
        table.add_column(column, no_wrap=True)
    for task, metric in comparison.tasks.items():
        table.add_column(f"{task}, {metric}", justify="right")
    by_name = {one.name: one for one in comparison.candidates}
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
    return f"{mean} ({found.mean:+.4f} ± {found.half_width:.4f}{'*' if comparison.shown(name, task) else ''})"


def summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "baseline": comparison.baseline,
        "seeds": len(comparison.seeds),
        "ranking": [{"candidate": name, "mean_rank": rank} for name, rank in comparison.ranking()],
        "undecidable": comparison.undecidable,
        "learning_rates": comparison.factors,
        "gains": {
            one.name: {task: _gain(comparison, one.name, task) for task in comparison.tasks}
            for one in comparison.candidates
            if one.name != comparison.baseline
        },
        "verdicts": [verdict.text for verdict in comparison.verdicts()],
    }


def _gain(comparison: Comparison, name: str, task: str) -> dict[str, float | None]:
    mean, half_width = comparison.gain(name, task)
    return {"mean": mean, "half_width": None if half_width == float("inf") else half_width}
