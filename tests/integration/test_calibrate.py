"""Calibrating a run from the command line: fitted on valid, kept with the checkpoint, applied by predict."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.jobs import write_job
from tests.support.ranks import run_cli
from tests.support.toy import write_toy


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose positives weighed five times: its odds are five times too high."""
    folder = tmp_path_factory.mktemp("calibrate")
    root = write_toy(folder / "data", train=(3000,), valid=2000, test=2000)
    tasks = [
        {"name": "click", "label": "is_click", "pos_weight": 5.0},
        {"name": "buy", "label": "is_buy", "given": "click"},
        {"name": "watch", "kind": "watch_time", "label": "watch_s", "space": "click", "weight": 0.1},
    ]
    config = write_job(folder / "job.yaml", root, tasks=tasks)
    assert run_cli("train", config, "-o", folder / "run") == 0
    return folder / "run"


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibrate_reports_before_and_after(method: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run_cli("evaluate", trained, "--calibrate", method, "--json") == 0
    test = json.loads(capsys.readouterr().out)["test"]
    assert test["click"]["calibration"] > 1.3
    assert test["click"]["calibrated_ece"] < 0.5 * test["click"]["ece"]
    assert "calibrated_ece" in test["buy"]
    assert "calibrated_ece" not in test["watch"]
    assert run_cli("evaluate", trained, "--split", "test", "--json") == 0  # stays with the checkpoint
    assert json.loads(capsys.readouterr().out)["test"] == test
    stored = json.loads(next(trained.glob("checkpoints/*/calibration.json")).read_text())
    assert stored["method"] == method
    assert list(stored["maps"]) == ["click", "buy"]

    data = trained.parent / "data" / "test"
    for name, options in (("mapped", []), ("raw", ["--raw"])):
        assert run_cli("predict", trained, "--input", data, "-o", trained.parent / f"{name}.parquet", *options) == 0
    mapped, raw = (pq.read_table(trained.parent / f"{name}.parquet") for name in ("mapped", "raw"))
    clicked = np.array(mapped["is_click"], dtype=float)
    before, after = np.array(raw["pred_click"]), np.array(mapped["pred_click"])
    assert abs(after.mean() - clicked.mean()) < 0.3 * abs(before.mean() - clicked.mean())
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= -1e-6).all()
    np.testing.assert_array_equal(mapped["pred_watch"], raw["pred_watch"])


def test_a_damaged_calibration_is_one_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", trained, "--calibrate", "platt") == 0
    path = next(trained.glob("checkpoints/*/calibration.json"))
    path.write_text("{")
    capsys.readouterr()
    assert run_cli("predict", trained, "--input", trained.parent / "data" / "test", "-o", trained / "x.parquet") == 2
    error = capsys.readouterr().err.strip()
    assert "calibration.json: not a calibration" in error
    assert "\n" not in error
    path.unlink()
    assert run_cli("evaluate", trained) == 0


def test_a_split_of_one_label_calibrates_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(trained.parent / "data" / "valid")
    table = table.set_column(table.column_names.index("is_click"), "is_click", pa.array(np.ones(table.num_rows)))
    one, none = table, table.set_column(table.column_names.index("is_buy"), "is_buy", pa.array(np.ones(table.num_rows)))
    for name, part in (("one", one), ("none", none)):
        (trained.parent / "data" / name).mkdir(exist_ok=True)
        pq.write_table(part, trained.parent / "data" / name / "part.parquet")
    capsys.readouterr()
    assert run_cli("evaluate", trained, "--calibrate", "platt", "--set", "data.valid=[none/*.parquet]") == 2
    assert "no binary task has rows of both labels" in capsys.readouterr().err
    assert not list(trained.glob("checkpoints/*/calibration.json"))
    assert run_cli("evaluate", trained, "--calibrate", "platt", "--set", "data.valid=[one/*.parquet]") == 0
    assert "not calibrated, one label only in the valid split: click" in capsys.readouterr().err
    next(trained.glob("checkpoints/*/calibration.json")).unlink()
