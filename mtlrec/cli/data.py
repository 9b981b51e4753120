"""The verbs of `mtlrec` that make data sets and look at them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from mtlrec.config.file import load_config
from mtlrec.errors import ConfigError

prepare_app = typer.Typer(
    help="Turn a public data set into Parquet and a schema.json; find statistics.", no_args_is_help=True
)
synth_app = typer.Typer(help="Make a data set whose true probabilities are known.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="The folder to write.")]
Folder = Annotated[Path, typer.Option(help="The publisher's file or a folder of them.")]
FolderOrDownload = Annotated[
    Path | None, typer.Option(help="The publisher's file or a folder of them; default: download.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]


def inspect(
    path: Annotated[str, typer.Argument(help="A file, folder, glob or URI of Parquet files.")],
    config: Annotated[Path | None, typer.Option(help="Write the proposed job there instead of printing it.")] = None,
    as_json: Json = False,
) -> None:
    """Say what is in Parquet files (rows, types, nulls, distinct values) and propose a job to start from."""
    from mtlrec.data.profiling.inspect import inspect as report_of
    from mtlrec.data.profiling.propose import propose, render

    if config is not None and config.exists():
        raise ConfigError(f"--config {config}: is there already; name another file")
    report = report_of(path)
    proposal = propose(report, path, config.stem if config else "job")
    if config is not None:
        config.write_text(render(proposal) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(asdict(report) | asdict(proposal)))
        return
    for line in report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    wide_console().print(_table(report))
    if config is None:
        print(render(proposal))
    else:
        print(f"{config}: a job to start from; read it, and change what is wrong")


def _table(report: Any) -> Any:
    from rich.table import Table

    size = f"{report.bytes / 1e9:.2f} GB" if report.bytes > 1e8 else f"{report.bytes / 1e6:.2f} MB"
    title = f"{report.files} files, {report.row_groups} row groups, {report.rows:,} rows, {size}"
    sampled = f"distinct, min, max, mean and lengths are of {report.sampled_rows:,} sampled rows; nulls of all"
    table = Table(title=title, caption=sampled, title_justify="left")
    for heading in ("column", "type", "nulls", "distinct", "min", "max", "mean", "length"):
        table.add_column(heading, justify="left" if heading in ("column", "type") else "right", overflow="fold")
    for one in report.columns:
        nulls = "" if one.nulls is None else f"{100 * one.nulls / report.rows:.1f} %"
        lengths = "" if one.max_length is None else f"{one.mean_length:.1f}, at most {one.max_length}"
        numbers = [_short(value) for value in (one.distinct, one.min, one.max, one.mean)]
        table.add_row(*map(escape, (one.name, one.type, nulls, *numbers, lengths)))
    return table


def _short(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value if len(value) <= 16 else value[:15] + "\u2026"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


@synth_app.command("feed", epilog="Example: mtlrec synth feed --out data/feed --rows 2000000")
def synth_feed(
    out: Out,
    rows: Annotated[int, typer.Option(help="Impressions over all splits.")] = 1_000_000,
    correlation: Annotated[float, typer.Option(help="Of the tasks' planted logits, -1 to 1.")] = 0.5,
    rate: Annotated[
        list[str] | None, typer.Option(help="TASK=RATE over impressions, as in like=0.005; may be given several times.")
    ] = None,
    splits: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of train, valid and test, in the order of time.")
    ] = (0.8, 0.1, 0.1),
    seed: Annotated[int, typer.Option(help="Of the users, the videos and the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """A short-video feed: click, long_view, like, share, watch_time, and the true probabilities beside them."""
    from mtlrec.datasets.synthetic import feed

    rates = dict(_rate(text) for text in rate or [])
    print_schema(feed(out, rows=rows, seed=seed, correlation=correlation, rates=rates, splits=splits), out, as_json)


@prepare_app.command("census-income", epilog="Example: mtlrec prepare census-income --out data/census-income")
def prepare_census_income(
    out: Out,
    source: FolderOrDownload = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """UCI Census-Income (KDD): income, never_married, college."""
    from mtlrec.datasets import census_income

    print_schema(census_income.prepare(source, out, seed=seed), out, as_json)


@prepare_app.command("kuairand", epilog="Example: mtlrec prepare kuairand --source kuairand.tsv.gz --out data/kuairand")
def prepare_kuairand(
    out: Out,
    source: FolderOrDownload = None,
    as_json: Json = False,
) -> None:
    """KuaiRand: click, long_view, follow, comment, forward, profile_enter, like, watch_ratio; split by time."""
    from mtlrec.datasets import kuairand

    print_schema(kuairand.prepare(source, out), out, as_json)


@prepare_app.command("criteo", epilog="Example: mtlrec prepare criteo --source criteo/day_0 --out data/criteo")
def prepare_criteo(source: Folder, out: Out, as_json: Json = False) -> None:
    """Criteo's click logs: Kaggle's train.txt, or day_0 to day_23 of the terabyte; click. Split by time."""
    from mtlrec.datasets import criteo

    with _rows_told(as_json) as progress:
        schema = criteo.prepare(source, out, progress=progress)
    print_schema(schema, out, as_json)


@prepare_app.command("ali-ccp", epilog="Example: mtlrec prepare ali-ccp --source ali_ccp --out data/ali_ccp")
def prepare_ali_ccp(
    source: Folder,
    out: Out,
    min_count: Annotated[int, typer.Option(help="Ids seen less often in train become 0.")] = 10,
    history: Annotated[int, typer.Option(help="Items kept of each of a user's histories.")] = 50,
    as_json: Json = False,
) -> None:
    """Ali-CCP: click and buy on Taobao, with histories of a user as weighted lists."""
    from mtlrec.datasets import ali_ccp

    with _rows_told(as_json) as progress:
        schema = ali_ccp.prepare(source, out, min_count=min_count, history=history, progress=progress)
    print_schema(schema, out, as_json)


@prepare_app.command("aliexpress", epilog="Example: mtlrec prepare aliexpress --source AliExpress_NL --out data/nl")
def prepare_aliexpress(source: Folder, out: Out, as_json: Json = False) -> None:
    """AliExpress search, one country: click and conversion."""
    from mtlrec.datasets import aliexpress

    with _rows_told(as_json) as progress:
        schema = aliexpress.prepare(source, out, progress=progress)
    print_schema(schema, out, as_json)


@prepare_app.command("stats", epilog="Example: mtlrec prepare stats job.yaml --out stats.json")
def prepare_stats(
    config: Annotated[str, typer.Argument(help="A YAML job, or the name of a recipe (see `mtlrec recipes`).")],
    out: Annotated[Path, typer.Option(help="The file to write; name it in data.statistics.")] = Path("stats.json"),
    min_count: Annotated[
        int, typer.Option(min=1, help="Values of a vocabulary seen less often are left to row 0.")
    ] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")] = None,
    as_json: Json = False,
) -> None:
    """Find what a job's features leave open in the train split: means and deviations for standardize, boundaries for
    bucketize, and the vocabularies whose files are not there yet."""
    from rich.progress import Progress

    from mtlrec.data.profiling import statistics

    job = load_config(config, set_ or [], statistics_to_come=True)
    with Progress(transient=True, disable=as_json, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None)
        found = statistics.find(
            job,
            min_count,
            progress=lambda done, rows: bar.update(task, completed=done, total=rows),
        )
    written = statistics.write(found, job, out)
    described = {"rows": found.rows, "written": written} | found.statistics.model_dump()
    print_(described, as_json, f"{found.rows:,} rows read; written: {', '.join(written)}")


@contextmanager
def _rows_told(as_json: bool) -> Iterator[Callable[[str, int], None]]:
    """A line on the screen for every file and split, with the rows of it so far."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as screen:
        tasks: dict[str, TaskID] = {}

        def told(what: str, rows: int) -> None:
            if what not in tasks:
                tasks[what] = screen.add_task(what, total=None)
            screen.update(tasks[what], completed=rows)

        yield told


def _rate(text: str) -> tuple[str, float]:
    task, _, rate = text.partition("=")
    try:
        return task, float(rate)
    except ValueError:
        raise ConfigError(f"--rate {text}: write TASK=RATE, for example --rate like=0.005") from None


def wide_console() -> Console:
    """A log is read without a terminal's edge."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=160)


def print_schema(schema: dict[str, Any], out: Path, as_json: bool) -> None:
    rows = ", ".join(f"{split} {count:,}" for split, count in schema["rows"].items())
    print_(schema, as_json, f"{out}: {rows} rows; schema.json describes them")


def check_split(split: str) -> None:
    if split not in ("train", "valid", "test"):
        raise ConfigError(f"--split {split}: no such split; there are train, valid and test")


def print_(value: Any, as_json: bool, text: str) -> None:
    print(json.dumps(value) if as_json else text)
