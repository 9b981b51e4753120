"""What the verbs return: tables for print, rich and a notebook; `to_dict` gives what the command's --json prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtlrec.display import Displayable

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

    from mtlrec.benchmark.benchmark import Benchmark
    from mtlrec.comparison.comparison import Comparison
    from mtlrec.diagnosis.diagnosis import Diagnosis
    from mtlrec.distributed.estimate import Estimate
    from mtlrec.evaluation.calibration import Calibration
    from mtlrec.evaluation.fused_score import FusedScore
    from mtlrec.evaluation.ranking_report import RankingReport
    from mtlrec.metrics import Metrics
    from mtlrec.serving.parity import Parity


@dataclass(frozen=True)
class TrainResult(Displayable):
    """A run. It may stand where a verb takes a run's folder.

    Attributes:
        run: its folder
        metrics: by split (valid, test), task and metric; empty where the training was stopped
        step: how many steps are done
        stopped: what ended the training before its last step: Ctrl-C (interrupted) or SIGTERM (preempted)
    """

    run: Path
    metrics: dict[str, Metrics]
    step: int
    stopped: Literal["interrupted", "preempted"] | None = None

    def __fspath__(self) -> str:
        return str(self.run)

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.evaluation.tables import metrics_table

        if self.stopped:
            yield f"{self.run}: {self.stopped} after step {self.step}"
        yield from (metrics_table(metrics, split) for split, metrics in self.metrics.items())

    def to_dict(self) -> dict[str, Any]:
        return _jsonable(self.metrics)


@dataclass(frozen=True)
class EvaluateResult(Displayable):
    """A checkpoint or an artifact on one split.

    Attributes:
        source: the checkpoint's name or the artifact's path
        metrics: by split, task and metric
        ranking: of the fused score, where a rank metric was asked for
    """

    source: str
    metrics: dict[str, Metrics]
    ranking: RankingReport | None = None

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.evaluation.tables import metrics_table, ranking_table

        yield from (metrics_table(metrics, f"{split}, {self.source}") for split, metrics in self.metrics.items())
        if self.ranking is not None:
            yield ranking_table(self.ranking)

    def to_dict(self) -> dict[str, Any]:
        from mtlrec.evaluation.tables import ranking_dict

        return _jsonable({**self.metrics, **({"ranking": ranking_dict(self.ranking)} if self.ranking else {})})


@dataclass(frozen=True)
class PredictResult(Displayable):
    """Scored rows: the input's columns (or data.keys), `pred_TASK` per task, `fused_score` where there is one.

    Attributes:
        source: the checkpoint's name or the artifact's path
        rows: how many were scored
        errors: how many of them an artifact could not score; None for a run
        output: the file or folder of scores, where one was named
        scores: the rows themselves, where none was
        calibration, fused_score: what was applied
    """

    source: str
    rows: int
    errors: int | None
    output: Path | None
    scores: pa.Table | None
    calibration: Calibration | None
    fused_score: FusedScore | None

    def parts(self) -> Iterator[RenderableType]:
        by = f", calibrated ({self.calibration.method})" if self.calibration else ""
        by += f"; fused_score is {self.fused_score}" if self.fused_score else ""
        by += f"; {self.errors:,} have an error" if self.errors else ""
        where = "" if self.output is None else f" into {self.output}"
        yield f"{self.rows:,} rows scored{where} by {self.source}{by}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            **({} if self.errors is None else {"errors": self.errors}),
            "output": None if self.output is None else str(self.output),
            "calibration": self.calibration and self.calibration.method,
            "fused_score": self.fused_score and self.fused_score.exponents,
        }


@dataclass(frozen=True)
class DiagnoseResult(Displayable):
    """Inside a trained model. `warnings` say in words what of it is unusual and which option addresses it."""

    diagnosis: Diagnosis
    warnings: list[str]

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.diagnosis.tables import diagnosis_tables

        yield from (f"- {line}" for line in self.warnings or ["nothing to warn of"])
        yield from diagnosis_tables(self.diagnosis)

    def to_dict(self) -> dict[str, Any]:
        return _jsonable(asdict(self.diagnosis) | {"warnings": self.warnings})


@dataclass(frozen=True)
class CompareResult(Displayable):
    """A finished comparison. `folder` holds report.html, report.md, results.parquet and the trials."""

    comparison: Comparison
    folder: Path

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.comparison.tables import comparison_parts

        yield from comparison_parts(self.comparison)

    def to_dict(self) -> dict[str, Any]:
        from mtlrec.comparison.tables import summary

        return _jsonable(summary(self.comparison))


@dataclass(frozen=True)
class ExportResult(Displayable):
    """An artifact. It may stand where a verb takes an artifact's folder.

    Attributes:
        artifact: its folder
        precision: of the tables
        size_bytes: of all its files
        parity: how the artifact's predictions compare with the checkpoint's
    """

    artifact: Path
    precision: str
    size_bytes: int
    parity: Parity

    def __fspath__(self) -> str:
        return str(self.artifact)

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.serving.tables import parity_table

        yield parity_table(self.parity)
        yield f"{self.artifact}: {self.size_bytes / 1e6:,.1f} MB, tables in {self.precision}"

    def to_dict(self) -> dict[str, Any]:
        return self.parity.model_dump(mode="json") | {"output": str(self.artifact), "bytes": self.size_bytes}


@dataclass(frozen=True)
class PlanResult(Displayable):
    """How the tables would lie on machines that need not be there."""

    estimate: Estimate

    def parts(self) -> Iterator[RenderableType]:
        yield from self.estimate.report()

    def to_dict(self) -> dict[str, Any]:
        found = self.estimate
        more = {"slowest_rank": found.slowest.rank, "imbalance": found.imbalance, "plan": found.plan.dump()}
        return asdict(found) | more


@dataclass(frozen=True)
class BenchResult(Displayable):
    """How fast a job trains, and what its steps are spent on."""

    benchmark: Benchmark

    def parts(self) -> Iterator[RenderableType]:
        from mtlrec.benchmark.tables import benchmark_parts

        yield from benchmark_parts(self.benchmark)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self.benchmark)


def _jsonable(value: Any) -> Any:
    from mtlrec.io import jsonable

    return jsonable(value)
