"""What is held against the checkpoint, and what of it is too much."""

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import process_group
from mtlrec.heads import HeadOutput
from mtlrec.models.build import build_train_module
from mtlrec.models.train_module import StepOutput
from mtlrec.serving.parity import Parity, apart, compare, differences
from tests.support.toy import loader_of, toy_table, toy_tree, write_toy

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    tree = toy_tree(write_toy(tmp_path_factory.mktemp("parity")))
    tree["tasks"].append({"name": "seconds", "kind": "watch_time", "label": "watch_s", "space": "click"})
    return JobConfig.model_validate(tree)


def found_of(job: JobConfig, change: Change, quantized: bool = False, split: str = "valid") -> Parity:
    """Where the artifact is the checkpoint but for `change`, a part by name."""
    torch.manual_seed(0)
    module = build_train_module(job, torch.device("cpu")).eval()

    def changed(batch: Batch) -> tuple[torch.Tensor, StepOutput]:
        loss, step = module(batch)
        parts = {name: part.clone() for name, part in step.outputs._asdict().items() if part is not None}
        change(parts)
        return loss, step._replace(outputs=step.outputs._replace(**parts))

    with process_group("cpu") as ranks:
        loader = loader_of(job, split=split)
        same = changed if quantized else module
        return compare(module, same, changed, loader, job, ranks, split, 1e-6, 5e-4)


def test_nothing_is_said_of_what_is_equal(job: JobConfig) -> None:
    found = found_of(job, lambda parts: None)
    assert (found.rows, found.failures, set(found.differences.values())) == (150, [], {0.0})
    assert found.metrics["click"]["auc"][0] == found.metrics["click"]["auc"][1]


@pytest.mark.parametrize(
    ("part", "slot", "task"),
    [("log_entire_p", 1, "buy"), ("value", 3, "ratio"), ("value", 4, "seconds")],
)
def test_a_difference_in_one_row_is_found(part: str, slot: int, task: str, job: JobConfig) -> None:
    def change(parts: dict[str, torch.Tensor]) -> None:
        parts[part][5, slot] += 1e-3

    found = found_of(job, change)
    assert [failure.split(":")[0] for failure in found.failures] == [task]
    assert 1e-4 < found.differences[task] < 2e-2
    assert "differ by" in found.failures[0]


def test_small_probabilities_are_compared_by_their_logarithms() -> None:
    """2e-7 in place of 1e-6 is no small difference to a fused score, and less than 1e-6."""

    def of(p: float) -> HeadOutput:
        return HeadOutput(*[torch.tensor([[p]], dtype=torch.float64).log()] * 4)

    assert apart(of(2e-7), of(1e-6), [True]).item() > 1e-3
    assert apart(of(1e-6), of(1e-6), [True]).item() == 0


def test_what_is_not_finite_fails(job: JobConfig) -> None:
    def change(parts: dict[str, torch.Tensor]) -> None:
        parts["value"][0, 3] = math.nan

    found = found_of(job, change)
    assert [failure.split(":")[0] for failure in found.failures] == ["ratio"]
    assert Parity.model_validate_json(found.model_dump_json()) == found


def test_metrics_of_quantized_tables_are_judged(job: JobConfig) -> None:
    """Shuffled predictions: other AUCs; shifted ones: the same AUC, another loss."""

    def shuffled(parts: dict[str, torch.Tensor]) -> None:
        for name in ("log_p", "log_not_p", "log_entire_p"):
            parts[name][:, 0] = parts[name][:, 0].roll(1, 0)

    def shifted(parts: dict[str, torch.Tensor]) -> None:
        parts["log_p"][:, 0] -= 1.0
        parts["value"][:, 3] += 1.0

    failures = found_of(job, shuffled, quantized=True).failures
    assert [failure.split(" 0.")[0] for failure in failures if "auc" in failure] == ["click: auc"]
    failures = found_of(job, shifted, quantized=True).failures
    assert {failure.split(" ")[0] + failure.split(" ")[1] for failure in failures} == {"click:log_loss", "ratio:mse"}
    assert all("0.5% of it" in failure and "--quantize fp16" in failure for failure in failures)


def test_of_one_class_the_loss_is_judged(job: JobConfig, tmp_path: Path) -> None:
    tree = job.dump()
    tree["tasks"][2] |= {"label": "one", "space": None}
    root = tmp_path / "data"
    table = toy_table(90).append_column("one", pa.array([1] * 90))
    (root / "valid").mkdir(parents=True)
    pq.write_table(table, root / "valid" / "part.parquet")
    tree["data"]["root"] = str(root)
    one_class = JobConfig.model_validate(tree)

    def change(parts: dict[str, torch.Tensor]) -> None:
        parts["log_p"][:, 2] -= 1.0

    found = found_of(one_class, change, quantized=True)
    assert found.metrics["like"]["auc"] == (None, None)
    assert [failure.split(" ")[:2] for failure in found.failures] == [["like:", "log_loss"]]


def test_differences_are_relative_above_one() -> None:
    found = differences(torch.tensor([0.5, 200.0, math.inf, math.nan]), torch.tensor([0.25, 100.0, 1.0, 1.0]))
    assert found.tolist() == [0.25, 1.0, math.inf, math.inf]
