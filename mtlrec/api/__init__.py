"""The verbs of mtlrec as functions: typed arguments, typed results, nothing printed.

    import mtlrec

    job = mtlrec.inspect(frame).job
    result = mtlrec.train(job, "runs/first", data=mtlrec.split(frame))
    print(result.metrics["test"]["click"]["auc"])
    mtlrec.export(result, "artifact")

They log to `logging.getLogger("mtlrec")`, draw progress bars only with `progress=True`, and raise a
`mtlrec.errors.UserError` for a mistake that you can put right. Under torchrun they are collective, like the command.
"""

from mtlrec.api.analysis import bench, diagnose, plan
from mtlrec.api.comparison import compare
from mtlrec.api.jobs import load_job
from mtlrec.api.results import (
    BenchResult,
    CompareResult,
    DiagnoseResult,
    EvaluateResult,
    ExportResult,
    PlanResult,
    PredictResult,
    TrainResult,
)
from mtlrec.api.scoring import evaluate, predict
from mtlrec.api.serving import export
from mtlrec.api.tables import InspectResult, inspect, split
from mtlrec.api.training import train

__all__ = [
    "BenchResult",
    "CompareResult",
    "DiagnoseResult",
    "EvaluateResult",
    "ExportResult",
    "InspectResult",
    "PlanResult",
    "PredictResult",
    "TrainResult",
    "bench",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "inspect",
    "load_job",
    "plan",
    "predict",
    "split",
    "train",
]
