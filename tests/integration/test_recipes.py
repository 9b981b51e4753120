"""The recipes fit the data they were written for: columns, vocabulary sizes, labels."""

import json
import os
from pathlib import Path

import pytest

from tests.ranks import run_cli

SHARED = Path(os.environ.get("MTLREC_SHARED", Path(__file__).parents[2].parent / "shared"))
SOURCES = {
    "census": ("census-income", SHARED / "data" / "census-income" / "census-income.test.gz"),
    "kuairand": ("kuairand", SHARED / "data" / "kuairand" / "kuairand_27k_kcore15.tsv.gz"),
}


def train_briefly(
    recipe: str, root: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, dict[str, float]]:
    capsys.readouterr()
    steps = ["--set", "train.max_steps=100", "--set", f"data.root={root}"]
    assert run_cli("train", recipe, "-o", run, *steps, "--json") == 0
    metrics: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)["test"]
    return metrics


@pytest.mark.parametrize("dataset", SOURCES)
def test_public_data(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb, source = SOURCES[dataset]
    if not source.exists():
        pytest.skip(f"no {source.name} in {SHARED}; set MTLREC_SHARED to the folder that has data/")
    assert run_cli("prepare", verb, "--source", source, "--out", tmp_path / "data") == 0
    metrics = train_briefly(f"{dataset}_ple", tmp_path / "data", tmp_path / "run", capsys)
    first = "never_married" if dataset == "census" else "click"
    assert metrics[first]["auc"] > 0.65, "a hundred steps should tell something"


def test_synthetic_feed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("synth", "feed", "--out", tmp_path / "data", "--rows", "60000") == 0
    metrics = train_briefly("feed_mmoe", tmp_path / "data", tmp_path / "run", capsys)
    assert list(metrics) == ["click", "long_view", "like", "share"]
    assert metrics["click"]["auc"] > 0.55
    assert metrics["click"]["rows"] == 6000
