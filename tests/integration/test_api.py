"""The verbs as functions: what the command does, from Python, with data in memory, and nothing printed."""

import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import mtlrec
from mtlrec.errors import ConfigError, DataError
from mtlrec.training import telemetry
from tests.support.jobs import curve, final_tensors, write_job
from tests.support.ranks import run_cli
from tests.support.toy import toy_job, toy_table

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "from_a_data_frame.ipynb"
DATA = {"train": toy_table(500), "valid": toy_table(150, 1), "test": toy_table(101, 2)}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command. Not to be written to."""
    folder = tmp_path_factory.mktemp("cli")
    config = write_job(folder / "job.yaml", data)
    assert run_cli("train", config, "-o", folder / "run") == 0
    return folder / "run"


def test_verbs_give_what_the_command_prints(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    result = mtlrec.train(trained / "config.yaml", tmp_path / "run")
    evaluated = mtlrec.evaluate(result, "test")
    scored = mtlrec.predict(result, data / "test")
    diagnosed = mtlrec.diagnose(result, batches=2)
    assert capsys.readouterr() == ("", "")
    assert result.stopped is None
    assert result.run == tmp_path / "run"
    assert curve(result.run) == curve(trained)
    assert evaluated.to_dict()["test"] == result.to_dict()["test"]
    assert run_cli("evaluate", trained, "--json") == 0
    assert json.loads(capsys.readouterr().out) == evaluated.to_dict()
    assert run_cli("predict", trained, "--input", data / "test", "-o", tmp_path / "scores.parquet") == 0
    assert scored.scores == pq.read_table(tmp_path / "scores.parquet")
    capsys.readouterr()
    assert run_cli("diagnose", trained, "--batches", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out) == diagnosed.to_dict()


def test_results_are_shown_as_tables(trained: Path) -> None:
    result = mtlrec.evaluate(trained, "valid")
    assert "valid, step_" in str(result)
    assert "click" in str(result)
    html = result._repr_html_()
    assert html.startswith("<pre")
    assert "auc" in html


@pytest.mark.parametrize("kind", ["arrow", "pandas", "path"])
def test_data_in_memory_trains_as_its_files_do(kind: str, tmp_path: Path) -> None:
    files = {split: tmp_path / split / "part-0.parquet" for split in DATA}
    for split, path in files.items():
        path.parent.mkdir()
        pq.write_table(DATA[split], path)
    given: dict[str, Any] = {"arrow": DATA, "path": files}.get(kind, {})
    if kind == "pandas":
        pandas = pytest.importorskip("pandas")
        given = {split: table.to_pandas(types_mapper=pandas.ArrowDtype) for split, table in DATA.items()}
        given["valid"].index = given["valid"].index + 7  # which is no column
    expected = mtlrec.train(toy_job(tmp_path), tmp_path / "expected")
    result = mtlrec.train(toy_job(), tmp_path / "run", data=given)
    assert curve(result.run) == curve(expected.run)
    assert mtlrec.evaluate(result).to_dict() == mtlrec.evaluate(expected).to_dict()
    assert mtlrec.evaluate(result, data=given["test"]).to_dict() == mtlrec.evaluate(expected).to_dict()
    assert (result.run / "data").exists() == (kind != "path")


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path, logged: list[str]) -> None:
    whole = mtlrec.train(toy_job(), tmp_path / "whole", data=DATA)
    with interrupted_at("step 5/"):
        result = mtlrec.train(toy_job(), tmp_path / "run", data=DATA)
    assert result.stopped == "interrupted"
    assert 5 <= result.step < whole.step
    assert result.metrics == {}
    assert "interrupted after step" in str(result)
    assert logged[-1] == f"stopped after step {result.step} as Ctrl-C asked; --resume goes on from there"
    resumed = mtlrec.train(toy_job(), tmp_path / "run", data=DATA, resume=True)
    assert resumed.stopped is None
    assert curve(resumed.run) == curve(whole.run)
    before, after = final_tensors(whole.run), final_tensors(resumed.run)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if isinstance(before[name], torch.Tensor))
    again = mtlrec.train(resumed.run / "config.yaml", resumed.run, resume=True)
    assert again.to_dict() == whole.to_dict(), "the stored job names the tables that were written"


def test_ctrl_c_ends_the_command_with_130(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path / "job.yaml", data)
    with interrupted_at("step 3/"):
        assert run_cli("train", config, "-o", tmp_path / "run") == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    said = capsys.readouterr()
    assert "as Ctrl-C asked; --resume goes on from there" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_bug_keeps_its_traceback(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ValueError of ours is not a UserError."""
    monkeypatch.setattr(telemetry, "step_values", lambda *_: dict(zip("ab", [1.0], strict=True)))
    config = write_job(tmp_path / "job.yaml", data)
    assert run_cli("train", config, "-o", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "zip() argument 2 is shorter than argument 1" in said
    assert "this is a bug in mtlrec or in a library it uses" in said.splitlines()[-1]
    with pytest.raises(ValueError, match="zip"):
        mtlrec.train(config, tmp_path / "other")


def test_a_mistake_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path / "job.yaml", data, data={"train": ["nowhere/*.parquet"]})
    assert run_cli("train", config, "-o", tmp_path / "run") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no file matches" in said[0]
    with pytest.raises(DataError, match="no file matches"):
        mtlrec.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"valid": DATA["valid"]}, "data: has the splits valid; give train"),
        ({"train": DATA["train"], "dev": DATA["valid"]}, "data: has the splits train, dev; give train"),
        ({"train": [1, 2]}, "list: is no table"),
        ({"train": "s3://bucket/logs"}, "set data.root to a URI"),
    ],
)
def test_data_that_cannot_be_used(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        mtlrec.train(toy_job(), tmp_path / "run", data=given)


def test_a_failed_overwrite_leaves_the_run_and_its_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = {"train.max_steps": 2}
    mtlrec.train(toy_job(), run, data=DATA, overrides=short)
    others = {"train": DATA["test"], "valid": DATA["valid"].drop_columns(["is_click"])}
    with pytest.raises(DataError, match="is_click"):
        mtlrec.train(toy_job(), run, data=others, overwrite=True)
    assert pq.read_table(run / "data" / "train").equals(DATA["train"])
    assert mtlrec.train(toy_job(), run, data=DATA, resume=True, overrides={"train.max_steps": 4}).step == 4
    mtlrec.train(toy_job(), run, data=others | {"valid": DATA["test"]}, overwrite=True, overrides=short)
    assert pq.read_table(run / "data" / "train").equals(DATA["test"])
    assert not (run / ".data_before").exists()


def test_the_notebook_runs_in_15_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(line.strip()) for cell in cells for line in cell["source"]) <= 15
    assert all(not cell["outputs"] for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert capsys.readouterr().out == ""
    assert names["run"].metrics["test"]["click"]["auc"] > 0.6
    assert names["artifact"].parity.failures == []
    scores = mtlrec.predict(artifact=names["artifact"], data=names["frame"][:5]).scores
    assert isinstance(scores, pa.Table)
    assert {"pred_click", "pred_like"} <= set(scores.column_names)


@contextmanager
def interrupted_at(line: str) -> Iterator[None]:
    """Sends this process SIGINT once when a line that begins so is logged."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(line):
                os.kill(os.getpid(), signal.SIGINT)

    log, watch = logging.getLogger("mtlrec"), Watch()
    level, before = log.level, signal.signal(signal.SIGINT, signal.default_int_handler)
    log.addHandler(watch)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(watch)
        log.setLevel(level)
        signal.signal(signal.SIGINT, before)
