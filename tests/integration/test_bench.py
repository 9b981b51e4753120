"""`mtlrec bench`: what it says of a small job, from files and without, on one rank and two."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mtlrec.benchmark.timeline import STAGES, STEP
from tests.support.jobs import write_job
from tests.support.ranks import run_cli
from tests.support.toy import write_toy


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    return write_job(folder / "job.yaml", write_toy(folder / "data"), data={"prefetch": 1})


def measured(capfd: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """What it prints after one round, which is enough where nothing depends on steady times."""
    assert run_cli("bench", "--steps", "10", "--rounds", "1", *words, "--json") == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.parametrize("source", ["train", "memory", "random"])
def test_what_is_measured_hangs_together(job: Path, source: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = measured(capfd, job, "--source", source, "--rounds", "2")
    assert list(found["split_ms"]) == list(STAGES)
    assert min(found["split_ms"].values()) > -1e-6
    for stage in ("sparse forward", "dense forward", "loss", "backward", "sparse update", "dense optimizer"):
        assert found["split_ms"][stage] > 0, stage
    assert (found["split_ms"]["data wait"] > 0) == (source == "train")
    assert (found["compute_samples_per_s"] == found["samples_per_s"]) == (source != "train")
    # The stages are all of the steps that they are of; the trace and the clock read around a step differ by little.
    assert found["split_to_step"] / found["profiled_to_step"] == pytest.approx(1, abs=0.1)
    assert found["step_p50_ms"] <= found["step_p99_ms"]
    flops, peak = found["flops_per_step"], 1e12 * found["ceilings"]["tflops"]
    reached = flops / (found["step_p50_ms"] / 1e3) / peak
    assert reached / 3 < found["mfu"] < reached * 3  # this is of medians, that the median of each turn's (unit tests)


def test_arithmetic_and_memory_are_those_of_the_job(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a model so small that both can be told from its sizes: no hidden layer but one expert's."""
    sizes = [
        "tables.user.rows=1000",
        "data.batch_size=64",
        "loss={}",
        "model.heads={kind: independent, tower_hidden: []}",
    ]
    sizes += ["model.bottom={kind: concat}", "model.fusion={kind: shared_bottom, expert_hidden: [[16]]}"]
    found = measured(capfd, job, "--source", "random", *(word for size in sizes for word in ("--set", size)))
    tree = yaml.safe_load(job.read_text())
    features = tree["features"]
    width = len(features["dense"]) + 8 * len(features["sparse"])
    tasks = len(tree["tasks"])
    # Forward, the weight's gradient, the input's gradient.
    assert found["flops_per_step"] == 3 * 2 * 64 * (width * 16 + 16 * tasks)
    parameters = (width + 1) * 16 + (16 + 1) * tasks
    assert found["memory_gb"]["dense parameters"] == pytest.approx(4 * parameters / 1e9)
    rows = 1000 + tree["tables"]["item"]["rows"]
    assert found["memory_gb"]["tables"] == pytest.approx(4 * 8 * rows / 1e9)
    assert found["memory_gb"]["tables' optimizer"] == pytest.approx(4 * rows / 1e9)


def test_an_epochs_last_batch_is_left_out(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two thirds of the rows in one batch, a third in the next: every step that is measured is of the first kind."""
    rows = sum(pq.read_metadata(file).num_rows for file in (job.parent / "data" / "train").glob("*.parquet"))
    size = rows * 2 // 3
    found = measured(capfd, job, "--set", f"data.batch_size={size}")
    again = measured(capfd, job, "--source", "random", "--set", f"data.batch_size={size}")
    assert found["flops_per_step"] == again["flops_per_step"]


def test_a_replicated_table_has_a_gradient(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    replicated = "sharding.constraints.user.types=[data_parallel]"
    found = measured(capfd, job, "--source", "random", "--set", "tables.user.rows=1000", "--set", replicated)
    assert found["memory_gb"]["replicated tables' gradients"] == pytest.approx(4 * 8 * 1000 / 1e9)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_and_a_trace(job: Path, tmp_path: Path) -> None:
    words = ["bench", str(job), "--steps", "10", "--rounds", "1", "--json", "--trace", str(tmp_path / "trace.json")]
    words += ["--world-size=3", "--world-size", "2"]  # the last one counts, as for every option
    command = [sys.executable, "-m", "mtlrec", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["world_size"] == 2
    assert found["split_ms"]["all-to-all"] > 0
    assert found["split_ms"]["all-reduce"] > 0
    assert found["communicated_mb"]["alltoall"] > 0
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert STEP in names


def test_the_tables_say_where_time_goes(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli("bench", job, "--steps", "5", "--rounds", "1", "--source", "random") == 0
    said = capfd.readouterr().out
    for words in ("samples/s", "all-to-all", "of a step", "peak of the process"):
        assert words in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "nowhere/trace.json"], "--trace nowhere/trace.json: there is no folder"),
        (["--set", "data.train=[none/*.parquet]"], "none/*.parquet"),
        (["--source", "memory", "--set", "data.batch_size=100000"], "data.batch_size: the files have fewer rows"),
        (["--source", "train", "--set", "data.batch_size=100000"], "data.batch_size: the files have fewer rows"),
        (["--trace", "."], "--trace .: is a folder"),
    ],
)
def test_mistakes_cost_one_line(job: Path, words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli("bench", job, *words) == 2
    error = capfd.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_ranks_within_ranks_are_refused(
    job: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert run_cli("bench", job, "--world-size", "2") == 2
    assert "torchrun has started the ranks already" in capfd.readouterr().err
