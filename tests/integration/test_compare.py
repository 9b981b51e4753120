"""`mtlrec compare`: what it trains, what it says of it, what it does not train twice."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from mtlrec.comparison.candidates import candidates
from mtlrec.comparison.comparison import choose
from mtlrec.comparison.trials import Result, Trial, Trials
from mtlrec.config.file import load_config
from tests.support.jobs import write_job
from tests.support.ranks import run_cli
from tests.support.toy import write_toy

WORDS = ("--fusion", "single_task,mmoe", "--seeds", "2", "--learning-rates", "1,3", "--jobs", "2")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    return write_job(folder / "job.yaml", write_toy(folder, valid=700, test=800), train={"epochs": 1})


@pytest.fixture(scope="module")
def compared(job: Path) -> Path:
    output = job.parent / "compared"
    assert run_cli("compare", job, "-o", output, *WORDS) == 0
    return output


@pytest.fixture
def copy(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "compared"))


def trained(output: Path) -> dict[str, int]:
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in sorted(output.rglob("result.json"))}


@pytest.mark.slow
def test_every_candidate_is_trained_at_its_size_with_every_seed(compared: Path) -> None:
    rows = pq.read_table(compared / "results.parquet").to_pylist()
    by_cell = {(row["candidate"], row["learning_rates"], row["seed"]): row["chosen"] for row in rows}
    for candidate in ("single_task", "mmoe"):
        mine = {key[1:]: chosen for key, chosen in by_cell.items() if key[0] == candidate}
        (factor,) = {factor for (factor, _), chosen in mine.items() if chosen}
        assert mine == {(factor, 0): True, (factor, 1): True, (4 - factor, 0): False}
    parameters = {row["candidate"]: row["parameters"] for row in rows}
    assert parameters["mmoe"] == pytest.approx(parameters["single_task"], rel=0.1)
    for row in rows:
        run = compared / "trials" / row["candidate"] / f"lr_{row['learning_rates']:g}" / f"seed_{row['seed']}"
        last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found = next(line for line in reversed(last) if line["kind"] == row["split"])
        assert found[f"{row['task']}/{row['metric']}"] == row["value"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["train"]["seed"] == row["seed"]
        optim = config["optim"]
        assert optim["dense"]["lr"] == pytest.approx(0.02 * row["learning_rates"])
        assert optim["sparse"]["lr"] == pytest.approx(0.2 * row["learning_rates"])


@pytest.mark.slow
def test_what_is_said_is_what_the_table_holds(job: Path, compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained(compared)
    assert run_cli("compare", job, "-o", compared, *WORDS, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert trained(compared) == before
    rows = [r for r in pq.read_table(compared / "results.parquet").to_pylist() if r["chosen"] and r["split"] == "test"]

    def values(candidate: str, task: str, metric: str) -> np.ndarray:
        mine = {
            r["seed"]: r["value"] for r in rows if (r["candidate"], r["task"], r["metric"]) == (candidate, task, metric)
        }
        return np.array([mine[0], mine[1]])

    assert said["undecidable"] == ["buy", "like"]
    assert said["baseline"] == "single_task"
    for task, metric, sign in (("click", "auc", 1), ("buy", "auc", 1), ("like", "auc", 1), ("ratio", "mse", -1)):
        differences = sign * (values("mmoe", task, metric) - values("single_task", task, metric))
        found = said["gains"]["mmoe"][task]
        assert found["mean"] == pytest.approx(differences.mean())
        # Student's t of one degree of freedom at 0.975 is tan(0.475 pi).
        assert found["half_width"] == pytest.approx(math.tan(0.475 * math.pi) * differences.std(ddof=1) / math.sqrt(2))
    assert {one["candidate"] for one in said["ranking"]} == {"single_task", "mmoe"}
    (verdict,) = said["verdicts"]
    assert "single_task" in verdict
    assert "mmoe" in verdict


@pytest.mark.slow
def test_only_what_is_missing_is_trained_again(job: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained(copy)
    gone = next(name for name in before if "mmoe" in name and "seed_1" in name)
    (copy / gone).unlink()
    assert run_cli("compare", job, "-o", copy, *WORDS) == 0
    after = trained(copy)
    assert {name for name in before if after[name] != before[name]} == {gone}
    captured = capsys.readouterr()
    assert "6 of 6: mmoe" in captured.err
    assert captured.err.count(" (kept): valid: click auc") == 5
    report = (copy / "report.html").read_text()
    assert "Inside the models" in report
    assert sorted(path.parent.name for path in copy.rglob("checkpoints")) == ["seed_0"] * 4
    shown = " ".join(captured.out.split())  # a title is as wide as its table
    assert "gain over single_task, better above 0, and its 95 % interval" in shown
    assert "has the best mean rank" in captured.out
    assert captured.out.count("\n- ") == 1, "a verdict on the best against every other"


@pytest.fixture(scope="module")
def trials(job: Path, compared: Path) -> Trials:
    return Trials(compared, candidates(load_config(str(job), []), ["single_task", "mmoe"]), 1)


@pytest.mark.slow
@pytest.mark.parametrize("left", ['{"metrics": {', "", "[]", "null", "{}", '{"metrics": {}, "samples_per_s": 1.0}'])
def test_a_cell_that_is_not_whole_is_missing(trials: Trials, left: str) -> None:
    """What an editor, a full disk or a user may do to it."""
    trial = Trial("mmoe", 1.0, 0)
    path = trials.run_of("mmoe", 1.0, 0) / "result.json"
    whole = path.read_text()
    assert trials.result(trial) is not None
    try:
        path.write_text(left)
        assert trials.result(trial) is None
    finally:
        path.write_text(whole)
    checkpoints = path.parent / "checkpoints"
    checkpoints.rename(path.parent / "away")
    assert trials.result(trial) is None, "the report looks into the first seed's model"
    (path.parent / "away").rename(checkpoints)
    assert trials.result(trial) is not None


def test_factors_have_folders_of_their_own() -> None:
    folders = {Trial("mmoe", factor, 0).folder for factor in (1.0, 1.00000001, 0.3, 0.3333333, 0.33333334)}
    assert len(folders) == 5
    assert {folder.parts[1] for folder in folders} >= {"lr_1", "lr_0.3"}


@pytest.mark.slow
def test_a_folder_is_one_comparisons_alone(job: Path, trials: Trials, capsys: pytest.CaptureFixture[str]) -> None:
    with trials:
        assert run_cli("compare", job, "-o", trials.folder, *WORDS) == 1
        said = capsys.readouterr().err.strip()
    assert "in use by another comparison, or by a training that one left behind" in said
    assert "\n" not in said


@pytest.mark.slow
def test_sigterm_ends_the_trainings_too(job: Path, tmp_path: Path) -> None:
    """As a scheduler or `timeout` sends it, to the one process."""
    words = ["--fusion", "mmoe", "--seeds", "1", "--learning-rates", "1", "--set", "train.epochs=100000"]
    command = [sys.executable, "-m", "mtlrec", "compare", str(job), "-o", str(tmp_path / "out"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "out" / "trials" / "mmoe" / "lr_1" / "seed_0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode != 0
    with Trials(tmp_path / "out", [], 1):
        pass  # the lock is free: no training is left that inherited it


@pytest.mark.slow
def test_the_folder_of_another_comparison_is_refused(job: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("compare", job, "-o", copy, *WORDS, "--set", "train.epochs=2") == 2
    assert "holds a comparison of another job" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_fails_is_named_with_its_reason(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--fusion", "mmoe", "--seeds", "1", "--learning-rates", "1", "--set", "data.root=nowhere"]
    assert run_cli("compare", job, "-o", tmp_path / "out", *words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "mmoe, learning rates x1, seed 0: ended with status 2: mtlrec: " in said
    assert "train.log" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rates", "1,x"], "--learning-rates 1,x: positive numbers"),
        (["--learning-rates", "0"], "--learning-rates 0: positive numbers"),
        (["--learning-rates", "inf"], "--learning-rates inf: positive numbers"),
        (["--fusion", ","], "--fusion: names no kind; leave it out"),
        (["--fusion", "mmoe,pel"], "--fusion pel: unknown; kinds are single_task, "),
        (["--set", "data.test=[]"], "data.test: a comparison wants its files"),
        (["--slice", "city"], "city"),
        (["--set", "data.valid=[]"], "data.valid: a comparison wants its files"),
    ],
)
def test_a_mistake_costs_one_line(
    words: list[str], message: str, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("compare", job, "-o", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_is_not_for_torchrun(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert run_cli("compare", job, "-o", tmp_path / "out") == 2
    assert "call it without torchrun" in capsys.readouterr().err


def result(click: float, ratio: float) -> Result:
    test = {"click": {"auc": 0.6, "positives": 300.0}, "ratio": {"mse": 1.0}}
    return Result({"valid": {"click": {"auc": click}, "ratio": {"mse": ratio}}, "test": test}, 1.0)


def test_the_learning_rates_with_the_best_mean_rank_are_chosen() -> None:
    assert choose("ple", {0.3: [result(0.70, 1.0)], 1: [result(0.72, 0.9)], 3: [result(0.71, 2.0)]}) == 1
    assert choose("ple", {0.3: [result(0.73, 0.8)], 1: [result(0.72, 0.9)]}) == 0.3
    assert choose("ple", {0.3: [result(0.73, 1.0)], 1: [result(0.72, 0.9)]}) == 1, "of equals the nearest to 1"
    lucky = [result(0.80, 0.5), result(0.60, 1.5), result(0.60, 1.5)]
    assert choose("ple", {0.3: lucky, 1: [result(0.70, 1.0)] * 3}) == 1, "the mean over seeds decides"
    unlucky = [result(0.75, 0.5), result(0.75, 0.5), result(0.62, 1.5)]
    assert choose("ple", {0.3: unlucky, 1: [result(0.70, 1.0)] * 3}) == 0.3, "not its worst seed"
    one_class = float("nan")
    assert choose("ple", {0.3: [result(one_class, 0.8)], 1: [result(0.72, 0.9)]}) == 0.3, "click has no say"
    assert choose("ple", {0.3: [result(one_class, one_class)], 1: [result(0.7, 0.9)]}) == 1
    few = result(0.73, 1.0)
    few.metrics["test"]["click"]["positives"] = 100.0
    assert choose("ple", {0.3: [few], 1: [result(0.72, 0.9)]}) == 1, "click has too few positives to have a say"
    dead = [result(0.5, 0.1), result(0.9, 0.1)]
    assert choose("ple", {0.3: dead, 1: [result(0.51, 9.0)] * 2}) == 1, "click died with one seed"
    assert choose("ple", {0.3: dead, 1: [result(0.5, 9.0)] * 2}) == 0.3, "with all"
    diverged = Result({}, 0.0, diverged="step 3: the loss of click is not finite")
    assert choose("ple", {1: [diverged], 0.3: [result(0.5, 9.0)]}) == 0.3
    assert choose("ple", {1: [result(0.9, 0.1), diverged], 0.3: [result(0.5, 9.0)] * 2}) == 0.3, "one is enough"
    with pytest.raises(ValueError, match="ple: diverges at every learning rate: step 3"):
        choose("ple", {1: [result(0.9, 0.1), diverged], 3: [diverged, diverged]})
