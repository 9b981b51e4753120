"""The verbs of `mtlrec` that make data sets and look at them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mtlrec import api
from mtlrec.cli.console import print_text_or_json, row_counts, show
from mtlrec.cli.options import Config, Json, OutputFolder, Set
from mtlrec.config.file import load_config
from mtlrec.errors import ConfigError

prepare_app = typer.Typer(
    help="Turn a public data set into Parquet and a schema.json; find statistics.", no_args_is_help=True
)
synth_app = typer.Typer(help="Make a data set whose true probabilities are known.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="The publisher's file or a folder of them.")]
FolderOrDownload = Annotated[
    Path | None, typer.Option(help="The publisher's file or a folder of them; default: download.")
]


def inspect(
    path: Annotated[str, typer.Argument(help="A file, folder, glob or URI of Parquet files.")],
    config: Annotated[Path | None, typer.Option(help="Write the proposed job there instead of printing it.")] = None,
    as_json: Json = False,
) -> None:
    """Say what is in Parquet files (rows, types, nulls, distinct values) and propose a job to start from."""
    if config is not None and config.exists():
        raise ConfigError(f"--config {config}: is there already; name another file")
    result = api.inspect(path, config.stem if config else "job")
    if config is not None:
        config.write_text(result.yaml + "\n", encoding="utf-8")
    for line in result.report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    show(result, as_json)
    if as_json:
        return
    if config is None:
        print(result.yaml)
    else:
        print(f"{config}: a job to start from; read it, and change what is wrong")


@synth_app.command("feed", epilog="Example: mtlrec synth feed --output data/feed --rows 2000000")
def synth_feed(
    output: OutputFolder,
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
    _print_schema(
        feed(output, rows=rows, seed=seed, correlation=correlation, rates=rates, splits=splits), output, as_json
    )


@prepare_app.command("census-income", epilog="Example: mtlrec prepare census-income --output data/census-income")
def prepare_census_income(
    output: OutputFolder,
    source: FolderOrDownload = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """UCI Census-Income (KDD): income, never_married, college."""
    from mtlrec.datasets import census_income

    _print_schema(census_income.prepare(source, output, seed=seed), output, as_json)


@prepare_app.command(
    "kuairand", epilog="Example: mtlrec prepare kuairand --source kuairand.tsv.gz --output data/kuairand"
)
def prepare_kuairand(
    output: OutputFolder,
    source: FolderOrDownload = None,
    as_json: Json = False,
) -> None:
    """KuaiRand: click, long_view, follow, comment, forward, profile_enter, like, watch_ratio; split by time."""
    from mtlrec.datasets import kuairand

    _print_schema(kuairand.prepare(source, output), output, as_json)


@prepare_app.command("criteo", epilog="Example: mtlrec prepare criteo --source criteo/day_0 --output data/criteo")
def prepare_criteo(source: Folder, output: OutputFolder, as_json: Json = False) -> None:
    """Criteo's click logs: Kaggle's train.txt, or day_0 to day_23 of the terabyte; click. Split by time."""
    from mtlrec.datasets import criteo

    with row_counts(as_json) as progress:
        schema = criteo.prepare(source, output, progress=progress)
    _print_schema(schema, output, as_json)


@prepare_app.command("ali-ccp", epilog="Example: mtlrec prepare ali-ccp --source ali_ccp --output data/ali_ccp")
def prepare_ali_ccp(
    source: Folder,
    output: OutputFolder,
    min_count: Annotated[int, typer.Option(help="Ids seen less often in train become 0.")] = 10,
    history: Annotated[int, typer.Option(help="Items kept of each of a user's histories.")] = 50,
    as_json: Json = False,
) -> None:
    """Ali-CCP: click and buy on Taobao, with histories of a user as weighted lists."""
    from mtlrec.datasets import ali_ccp

    with row_counts(as_json) as progress:
        schema = ali_ccp.prepare(source, output, min_count=min_count, history=history, progress=progress)
    _print_schema(schema, output, as_json)


@prepare_app.command("aliexpress", epilog="Example: mtlrec prepare aliexpress --source AliExpress_NL --output data/nl")
def prepare_aliexpress(source: Folder, output: OutputFolder, as_json: Json = False) -> None:
    """AliExpress search, one country: click and conversion."""
    from mtlrec.datasets import aliexpress

    with row_counts(as_json) as progress:
        schema = aliexpress.prepare(source, output, progress=progress)
    _print_schema(schema, output, as_json)


@prepare_app.command("stats", epilog="Example: mtlrec prepare stats job.yaml --output stats.json")
def prepare_stats(
    config: Config,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; name it in data.statistics.")
    ] = Path("stats.json"),
    min_count: Annotated[
        int, typer.Option(min=1, help="Values of a vocabulary seen less often are left to row 0.")
    ] = 1,
    set_: Set = None,
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
    written = statistics.write(found, job, output)
    described = {"rows": found.rows, "written": written} | found.statistics.model_dump()
    print_text_or_json(described, as_json, f"{found.rows:,} rows read; written: {', '.join(written)}")


def _rate(text: str) -> tuple[str, float]:
    task, _, rate = text.partition("=")
    try:
        return task, float(rate)
    except ValueError:
        raise ConfigError(f"--rate {text}: write TASK=RATE, for example --rate like=0.005") from None


def _print_schema(schema: dict[str, Any], output: Path, as_json: bool) -> None:
    rows = ", ".join(f"{split} {count:,}" for split, count in schema["rows"].items())
    print_text_or_json(schema, as_json, f"{output}: {rows} rows; schema.json describes them")
