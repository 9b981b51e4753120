"""A user's own fusion layer, head, bottom, task loss and metric go the whole way, without a fork."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.jobs import curve, final_tensors, write_job
from tests.support.own_parts import own_sections, write_package
from tests.support.ranks import run_cli, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture
def job(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of own parts, whose package is on the path of this process and of those it starts."""
    folder = write_package(tmp_path / "theirs")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return write_job(tmp_path / "job.yaml", data, **own_sections())


def test_own_parts_go_the_whole_way(job: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert run_cli("train", job, "-o", whole, "--set", "train.diagnose_every=1000") == 0
    assert run_cli("train", job, "-o", run, "--set", "train.max_steps=9") == 0
    before = final_tensors(run)
    assert run_ranks(2, run_cli, "train", job, "-o", run, "--resume", "--set", "data.batch_size=32") == [0, 0]
    assert [line["step"] for line in curve(run) if line["kind"] == "train"] == list(range(1, 19))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in final_tensors(run).items())
    assert curve(run)[:9] == curve(whole)[:9]
    capsys.readouterr()

    assert run_cli("evaluate", run, "--json") == 0
    metrics = json.loads(capsys.readouterr().out)["test"]
    assert metrics["ratio"]["bias"] == pytest.approx(metrics["ratio"]["predicted_mean"] - metrics["ratio"]["mean"])
    assert 0 < metrics["click"]["auc"] < 1
    assert run_cli("diagnose", run, "--json") == 0
    assert run_cli("predict", run, "--input", data / "test", "--output", tmp_path / "eager.parquet") == 0

    artifact = tmp_path / "artifact"
    assert run_cli("export", run, "--output", artifact) == 0
    scored = ("--input", data / "test", "--output", tmp_path / "compiled.parquet")
    assert run_cli("predict", "--artifact", artifact, *scored) == 0
    eager, compiled = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("eager", "compiled"))
    for column in ("pred_click", "pred_buy", "pred_ratio"):
        np.testing.assert_allclose(np.array(eager[column]), np.array(compiled[column]), rtol=1e-4, atol=1e-5)

    grid = ("--fusion", "their_parts:Attention,mmoe", "--seeds", "1", "--learning-rates", "1", "--match", "none")
    assert run_cli("compare", job, "-o", tmp_path / "compared", *grid, "--set", "train.max_steps=5") == 0
    assert set(pq.read_table(tmp_path / "compared" / "results.parquet")["candidate"].to_pylist()) == {
        "Attention",
        "mmoe",
    }


def test_a_package_that_is_gone_is_named(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs" / "their_parts").rename(tmp_path / "elsewhere")
    monkeypatch.delitem(__import__("sys").modules, "their_parts", raising=False)
    assert run_cli("train", job, "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert (
        "model.fusion.kind = 'their_parts:Attention': no module their_parts; install it, or add its folder to" in error
    )
