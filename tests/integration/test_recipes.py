"""The recipes fit the data they were written for: columns, vocabulary sizes, labels."""

import json
import os
from pathlib import Path

import pytest

from tests.support.ranks import run_cli
from tests.unit.datasets import test_ali_ccp as test_prepare_ali_ccp
from tests.unit.datasets import test_criteo as test_prepare_criteo

SHARED = Path(os.environ.get("MTLREC_SHARED", Path(__file__).parents[2].parent / "shared"))
SOURCES = {
    "census": ("census-income", SHARED / "data" / "census-income" / "census-income.test.gz"),
    "kuairand": ("kuairand", SHARED / "data" / "kuairand" / "kuairand_27k_kcore15.tsv.gz"),
}


def train_briefly(
    recipe: str, root: Path, run: Path, capsys: pytest.CaptureFixture[str], *further: str
) -> dict[str, dict[str, float]]:
    capsys.readouterr()
    options = [word for one in ("train.max_steps=100", f"data.root={root}", *further) for word in ("--set", one)]
    assert run_cli("train", recipe, "-o", run, *options, "--json") == 0
    metrics: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)["test"]
    return metrics


@pytest.mark.parametrize("dataset", SOURCES)
def test_public_data(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb, source = SOURCES[dataset]
    if not source.exists():
        pytest.skip(f"no {source.name} in {SHARED}; set MTLREC_SHARED to the folder that has data/")
    assert run_cli("prepare", verb, "--source", source, "--output", tmp_path / "data") == 0
    metrics = train_briefly(dataset, tmp_path / "data", tmp_path / "run", capsys)
    first = "never_married" if dataset == "census" else "click"
    assert metrics[first]["auc"] > 0.65, "a hundred steps should tell something"


def test_criteo_from_the_publishers_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = test_prepare_criteo.write_lines(tmp_path / "in" / "train.txt", test_prepare_criteo.made_lines(1400))
    assert run_cli("prepare", "criteo", "--source", source, "--output", tmp_path / "data") == 0
    told = capsys.readouterr().err
    assert "train.txt: 1,400 rows" in told
    assert "valid/: 100 rows" in told
    assert run_cli("prepare", "criteo", "--source", source, "--output", tmp_path / "again", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"]["total"] == 1400
    assert not err
    fewer = [f"tables.C{column}.rows=1000" for column in (1, 10, 11, 20, 21, 22)]
    metrics = train_briefly("criteo", tmp_path / "data", tmp_path / "run", capsys, *fewer)
    assert metrics["click"]["rows"] == 100


def test_ali_ccp_from_the_publishers_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = test_prepare_ali_ccp.write_files(tmp_path / "in")
    least = ["--min-count", "1", "--history", "5"]
    assert run_cli("prepare", "ali-ccp", "--source", source, "--output", tmp_path / "data", *least) == 0
    metrics = train_briefly("ali_ccp", tmp_path / "data", tmp_path / "run", capsys)
    assert list(metrics) == ["click", "buy"]


def test_synthetic_feed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("synth", "feed", "--output", tmp_path / "data", "--rows", "60000") == 0
    metrics = train_briefly("feed", tmp_path / "data", tmp_path / "run", capsys)
    assert list(metrics) == ["click", "long_view", "like", "share"]
    assert metrics["click"]["auc"] > 0.55
    assert metrics["click"]["rows"] == 6000
