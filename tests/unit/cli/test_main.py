"""The command line: help with an example for every verb, JSON that is nothing but JSON, statuses."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mtlrec.cli.main import app, run_command
from mtlrec.config import JobConfig
from mtlrec.errors import ConfigError, JobFailed
from tests.support.ranks import run_cli

VERBS = [
    ["train"],
    ["evaluate"],
    ["predict"],
    ["inspect"],
    ["plan"],
    ["recipes"],
    ["schema"],
    ["synth", "feed"],
    ["prepare", "census-income"],
    ["prepare", "kuairand"],
    ["prepare", "criteo"],
    ["prepare", "ali-ccp"],
    ["prepare", "aliexpress"],
    ["prepare", "stats"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example(verb: list[str]) -> None:
    result = CliRunner().invoke(app, [*verb, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert f"Example: mtlrec {' '.join(verb)}" in result.output


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("recipes") == 0
    assert capsys.readouterr().out.split() == ["ali_ccp", "census", "criteo", "feed", "kuairand"]
    assert run_cli("recipes", "census") == 0
    text = capsys.readouterr().out
    assert text.startswith("# Census-Income")
    assert JobConfig.model_validate(yaml.safe_load(text)).model.fusion.kind == "adatt_sp"
    assert run_cli("recipes", "census", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "census"
    assert run_cli("recipes", "census_mlp") == 2
    assert "recipes are ali_ccp, census, criteo" in capsys.readouterr().err


def test_version_names_what_a_report_of_a_fault_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("--version") == 0
    assert re.fullmatch(r"mtlrec [\d.]+, torch [\d.]+\S*, torchrec [\d.]+\S*\n", capsys.readouterr().out)


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"name", "features", "tasks", "model"} <= set(schema["required"])


def test_synth_reports_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("synth", "feed", "--output", tmp_path / "feed", "--rows", "500", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"]["total"] == 500
    assert run_cli("synth", "feed", "--output", tmp_path / "feed2", "--rows", "-3") == 2
    assert "rows" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["census-income", "kuairand", "criteo", "ali-ccp", "aliexpress"])
def test_a_missing_source_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("prepare", name, "--source", tmp_path / "nothing.gz", "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "nothing.gz" in said[0]


def test_evaluate_wants_a_run_and_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", tmp_path) == 2
    assert "no run (it has no config.yaml)" in capsys.readouterr().err
    assert run_cli("evaluate", tmp_path, "--split", "dev") == 2
    assert "there are train, valid and test" in capsys.readouterr().err


def test_unknown_options_are_usage_errors() -> None:
    assert run_cli("train", "census", "--outptu", "x") == 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "mtlrec: No space left on device"),
        (OSError(13, "Permission denied", "runs/a"), 1, "mtlrec: runs/a: Permission denied"),
        (MemoryError(), 1, "mtlrec: out of memory. Lower data.batch_size"),
        (JobFailed("step 3: the loss is not finite"), 1, "mtlrec: step 3: the loss is not finite"),
        (ConfigError("train.epochs = 0: too few"), 2, "mtlrec: train.epochs = 0: too few"),
    ],
)
def test_what_is_no_bug_is_one_line(
    error: Exception, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: dict(zip("ab", [1], strict=True))) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ValueError: this is a bug in mtlrec" in said
