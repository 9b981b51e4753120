"""`mtlrec evaluate` and `mtlrec predict`: what a trained run is worth, and what it says of rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mtlrec.cli import export as cli_serve
from mtlrec.cli.data import check_split, print_, wide_console
from mtlrec.config import JobConfig
from mtlrec.config.file import job_of
from mtlrec.errors import ConfigError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mtlrec.data.loader import Loader
    from mtlrec.distributed.process_group import Ranks
    from mtlrec.evaluation.ranking_report import Mean, RankingReport
    from mtlrec.metrics.ranking import RankMetric
    from mtlrec.metrics.task_metrics import Metrics, TaskMetrics
    from mtlrec.training.sharded import ShardedModel

Run = Annotated[Path, typer.Argument(help="The folder of a run: what `train --output` made.")]
RunOrNone = Annotated[Path | None, typer.Argument(help="The folder of a run: what `train --output` made.")]
Artifact = Annotated[
    Path | None,
    typer.Option("--artifact", help="Take what `mtlrec export` made, in place of a run.", show_default=False),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="key.path=value; may be given several times.")]
Which = Annotated[str, typer.Option("--checkpoint", help="last, best (see train.keep_best) or the number of a step.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]

LAST = "last"


class CalibrationMethod(StrEnum):
    platt = "platt"
    isotonic = "isotonic"


def evaluate(
    run: RunOrNone = None,
    artifact: Artifact = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    calibrate: Annotated[
        CalibrationMethod | None,
        typer.Option(
            help="Fit a map of each task's probabilities on the valid split, and keep it with the checkpoint."
        ),
    ] = None,
    rank_metric: Annotated[
        str | None,
        typer.Option(
            help="ndcg@K or hit_rate@K within metrics.group_by: search the powers of the product of predictions (of "
            "binary and watch-time tasks) that ranks best on the valid split, and keep them with the checkpoint, for "
            "predict to write fused_score."
        ),
    ] = None,
    relevance: Annotated[
        str, typer.Option(help="What an impression was worth, as in click,like=2; by default 1 for each binary label.")
    ] = "",
    exponents: Annotated[
        str, typer.Option(help="Take these powers, as in click=1,long_view=0.5; search none and keep none.")
    ] = "",
    checkpoint_: Which = LAST,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint of a run, or an artifact; the number of ranks need not be that of the training."""
    from mtlrec.distributed.process_group import on_first_rank, process_group
    from mtlrec.evaluation.evaluate import evaluate as evaluate_model
    from mtlrec.metrics.calibration import Calibration
    from mtlrec.training.loading import loader_of
    from mtlrec.training.sharded import load_run

    check_split(split)
    asked = {"calibrate": calibrate, "rank_metric": rank_metric, "relevance": relevance, "exponents": exponents}
    cli_serve.check_run_or_artifact(run, artifact, **asked, checkpoint=checkpoint_ != LAST)
    if artifact is not None:
        report({split: cli_serve.evaluate_artifact(artifact, split, set_ or [])}, as_json, f", {artifact}")
        return
    assert run is not None
    job = job_of(run, set_ or [])
    wanted = _wanted_ranking(job, rank_metric, relevance, exponents)
    with process_group(job.train.device, job.train.timeout_s) as ranks:
        model = load_run(job, run, ranks, checkpoint_)
        checkpoint = model.checkpoint
        assert checkpoint is not None

        def loader(of: str) -> Loader:
            return loader_of(job, of, ranks, expected_fingerprints=model.id_fingerprints)

        if calibrate is not None:
            valid = evaluate_model(model.module, loader("valid"), job, ranks, "calibrate")
            _keep_calibration(valid, calibrate, job, checkpoint, ranks)
        ranking = None
        if wanted is None:
            metrics = evaluate_model(model.module, loader(split), job, ranks, "evaluate")
        else:
            loaders = {one: loader(one) for one in dict.fromkeys([*wanted.searched_on, split])}
            metrics, ranking = _ranking(model, loaders, split, job, ranks, wanted)
            if wanted.exponents is None:
                on_first_rank(ranks, lambda: ranking.score.write(checkpoint))
        calibration = on_first_rank(ranks, lambda: Calibration.read(checkpoint))
        found = metrics.compute(calibration)
        if ranks.is_first:
            report({split: found}, as_json, f", {checkpoint.name}", ranking)


def predict(
    source: Annotated[str, typer.Option("--input", help="A file, folder, glob or URI of Parquet files.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The Parquet file to write; a folder on several ranks.")
    ],
    run: RunOrNone = None,
    artifact: Artifact = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave aside what `evaluate --calibrate` has fitted.")] = False,
    exponents: Annotated[
        str,
        typer.Option(
            help="Write fused_score too, the product of predictions to these powers, as in click=1,like=0.5; by "
            "default with what `evaluate --rank-metric` has kept."
        ),
    ] = "",
    checkpoint_: Which = LAST,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Score rows: the input's columns (or data.keys), one pred_TASK column per task, fused_score where there is one; by
    an artifact also `error`, which says why a row has no scores, where a run goes by data.on_error."""
    from mtlrec.distributed.process_group import on_first_rank, process_group
    from mtlrec.evaluation.predict import predict as predict_rows
    from mtlrec.metrics.calibration import Calibration
    from mtlrec.metrics.fused_score import FusedScore, exponents_of
    from mtlrec.training.sharded import load_run

    cli_serve.check_run_or_artifact(
        run, artifact, raw=raw, exponents=exponents, checkpoint=checkpoint_ != LAST, set=set_
    )
    if artifact is not None:
        cli_serve.predict_with_artifact(artifact, source, output, as_json)
        return
    assert run is not None
    job = job_of(run, set_ or [])
    given = FusedScore(exponents=exponents_of(exponents, job)) if exponents else None
    with process_group(job.train.device, job.train.timeout_s) as ranks:
        model = load_run(job, run, ranks, checkpoint_)
        checkpoint = model.checkpoint
        assert checkpoint is not None
        calibration = None if raw else on_first_rank(ranks, lambda: Calibration.read(checkpoint))
        score = given or on_first_rank(ranks, lambda: FusedScore.read(checkpoint, job))
        rows = predict_rows(model, job, source, output, ranks, calibration, score)
        if ranks.is_first:
            by = f", calibrated ({calibration.method})" if calibration else ""
            by += f"; fused_score is {score}" if score else ""
            described = {
                "rows": rows,
                "output": str(output),
                "calibration": calibration and calibration.method,
                "fused_score": score and score.exponents,
            }
            print_(described, as_json, f"{rows:,} rows scored into {output} by {checkpoint.name}{by}")


def report(final: Mapping[str, Metrics], as_json: bool, of: str = "", ranking: RankingReport | None = None) -> None:
    """Prints the metrics by split, and the ranking where there is one."""
    from mtlrec.metrics.table import jsonable, metrics_table

    if as_json:
        print(json.dumps(jsonable({**final, **({"ranking": _described(ranking)} if ranking else {})})))
        return
    console = wide_console()
    for split, metrics in final.items():
        console.print(metrics_table(metrics, split + of))
    if ranking is not None:
        console.print(_ranking_table(ranking))


# ---- the parts


def _keep_calibration(
    valid: TaskMetrics, method: CalibrationMethod, job: JobConfig, checkpoint: Path, ranks: Ranks
) -> None:
    """Collective."""
    from mtlrec.distributed.process_group import on_first_rank
    from mtlrec.evaluation.evaluate import fit_calibration

    fitted = fit_calibration(valid, method.value)
    on_first_rank(ranks, lambda: fitted.write(checkpoint))
    left_out = [task.name for task in job.tasks if task.is_binary and task.name not in fitted.maps]
    if left_out and ranks.is_first:
        logger.info(f"not calibrated, one label only in the valid split: {', '.join(left_out)}")
    if ranks.is_first:
        logger.info(f"{method.value} fitted on {fitted.rows:,} valid rows, kept in {checkpoint}; predict applies it")


class _Wanted:
    """What `--rank-metric` and its options ask for."""

    def __init__(self, job: JobConfig, metric: RankMetric, relevance: str, exponents: str) -> None:
        from mtlrec.metrics.fused_score import exponents_of, relevance_of

        self.metric = metric
        by_default = {task.name: 1.0 for task in job.tasks if task.is_binary}
        self.relevance = relevance_of(relevance, job) if relevance else by_default
        self.exponents = exponents_of(exponents, job) if exponents else None
        self.searched_on = [] if exponents else ["valid"]


def _wanted_ranking(job: JobConfig, rank_metric: str | None, relevance: str, exponents: str) -> _Wanted | None:
    from mtlrec.metrics.ranking import RankMetric

    if rank_metric is None:
        for option, given in (("--relevance", relevance), ("--exponents", exponents)):
            if given:
                raise ConfigError(f"{option} {given}: goes with --rank-metric, as in --rank-metric ndcg@10")
        return None
    wanted = _Wanted(job, RankMetric.parse(rank_metric), relevance, exponents)
    if not wanted.relevance:
        raise ConfigError("--rank-metric: the job has no binary task; say what is worth something with --relevance")
    if job.metrics.group_by is None:
        raise ConfigError("--rank-metric: whose impressions are ranked? --set metrics.group_by=user_id, or your column")
    if wanted.searched_on and not job.data.valid:
        raise ConfigError("data.valid: --rank-metric searches its powers there; name files, or give --exponents")
    return wanted


def _ranking(
    model: ShardedModel, loaders: Mapping[str, Loader], split: str, job: JobConfig, ranks: Ranks, wanted: _Wanted
) -> tuple[TaskMetrics, RankingReport]:
    """Collective."""
    from mtlrec.distributed.process_group import on_first_rank
    from mtlrec.evaluation.ranking_report import ranked_rows, report_on

    splits = {name: ranked_rows(model, loader, job, ranks, wanted.relevance, name) for name, loader in loaders.items()}
    found = on_first_rank(ranks, lambda: report_on(splits, job, wanted.metric, wanted.relevance, wanted.exponents))
    return splits[split].metrics, found


def _described(ranking: RankingReport) -> dict[str, Any]:
    return {
        "metric": ranking.metric,
        "relevance": ranking.relevance,
        "exponents": ranking.score.exponents,
        "users": ranking.users,
        "fused": _plain(ranking.fused),
        "all_alike": _plain(ranking.alike),
        "random_order": _plain(ranking.random_order),
        "tasks": {split: _plain(of) for split, of in ranking.tasks.items()},
        "best_alone": ranking.alone,
        "gains": _plain(ranking.gains),
    }


def _plain(figures: Mapping[str, Mapping[str, Mean]]) -> dict[str, dict[str, dict[str, float]]]:
    return {name: {metric: mean._asdict() for metric, mean in of.items()} for name, of in figures.items()}


def _ranking_table(ranking: RankingReport) -> Table:
    title = f"order of each user's impressions, worth {_terms(ranking.relevance, ' + ')}"
    table = Table("score", title=title, caption=f"fused: {ranking.score}")
    for split, users in ranking.users.items():
        for metric in ranking.fused[split]:
            table.add_column(f"{split}, {users:,} users\n{metric}", justify="right")
    for name, figures in (
        ("fused", ranking.fused),
        ("all to one power", ranking.alike),
        ("by lot", ranking.random_order),
    ):
        table.add_row(name, *_cells(figures.values(), ".4f"))
    table.add_section()
    for task in next(iter(ranking.tasks.values())):
        table.add_row(task, *_cells((of[task] for of in ranking.tasks.values()), ".4f"))
    table.add_section()
    table.add_row(f"fused over {ranking.alone}", *_cells(ranking.gains.values(), "+.4f"))
    return table


def _cells(by_split: Iterable[Mapping[str, Mean]], kind: str) -> list[str]:
    return [f"{mean:{kind}} ± {half_width:.4f}" for of in by_split for mean, half_width in of.values()]


def _terms(weights: Mapping[str, float], joined_by: str) -> str:
    return joined_by.join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items() if weight)
