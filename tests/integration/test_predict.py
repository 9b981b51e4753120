"""Scores: which columns stand beside them, whence they are read, and where they are never written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from mtlrec.evaluation import predict as predict_module
from tests.support.jobs import write_job
from tests.support.ranks import run_cli
from tests.support.toy import toy_table, toy_tree, write_toy


def test_scores_never_land_on_their_input(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    source = tmp_path / "rows" / "x.parquet"
    source.parent.mkdir()
    pq.write_table(toy_table(30), source)
    for given, out in (
        (source, source),
        (source.parent, source.parent / "scores.parquet"),
        (source.parent, source.parent),
        (f"{source.parent}/*.parquet", source),
        (f"file://{source}", source),
    ):
        assert run_cli("predict", run, "--input", given, "-o", out, "--set", "data.keys=[row]") == 2
        assert re.search("write the scores elsewhere|name the file to write", capsys.readouterr().err)
    assert pq.read_table(source).num_rows == 30


def test_an_output_that_is_not_finite_names_task_and_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}, data={"valid": [], "test": []})
    assert run_cli("train", config, "-o", tmp_path / "run", "--set", "optim.dense.lr=1e30") == 0
    assert run_cli("evaluate", tmp_path / "run", "--set", f"data.test=[{data}/test]") == 1
    said = capsys.readouterr().err
    assert re.search("the model's output for click.* is not finite; rows from .*test/part-0.parquet", said)
    assert run_cli("predict", tmp_path / "run", "--input", data / "test", "-o", tmp_path / "scores.parquet") == 1
    assert not (tmp_path / "scores.parquet").exists()


def test_files_may_differ_in_the_width_of_their_integers(tmp_path: Path) -> None:
    root = write_toy(tmp_path / "data")
    table = toy_table(70, seed=3)
    wide = table.set_column(table.column_names.index("item_id"), "item_id", table["item_id"].cast(pa.int64()))
    pq.write_table(wide, root / "train" / "part-7.parquet")
    config = write_job(tmp_path / "job.yaml", root, data={"shuffle": "none", "shuffle_buffer": 1})
    assert run_cli("train", config, "-o", tmp_path / "run") == 0
    assert run_cli("predict", tmp_path / "run", "--input", root / "train", "-o", tmp_path / "scores.parquet") == 0
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 557 + 70


def test_predict_sees_the_columns_of_folders_names(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "valid", "test"):
        for hour in (3, 7):
            (root / split / f"hour={hour}").mkdir(parents=True)
            pq.write_table(toy_table(60, hour), root / split / f"hour={hour}" / "part.parquet")
    tree = toy_tree(root, data={split: [split] for split in ("train", "valid", "test")})
    tree["tables"]["hours"] = {"rows": 24, "dim": 4}
    tree["features"]["sparse"].append({"name": "hour", "table": "hours"})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("train", tmp_path / "job.yaml", "-o", tmp_path / "run", "--set", "train.max_steps=2") == 0
    scores = {}
    for name in ("", "hour=7", "hour=7/part.parquet"):
        out = tmp_path / "scores.parquet"
        assert run_cli("predict", tmp_path / "run", "--input", root / "test" / name, "-o", out) == 0
        table = pq.read_table(out)
        scores[name] = table.filter(pc.equal(table["hour"], 7))
        assert scores[name].num_rows == 60
    assert scores[""] == scores["hour=7"] == scores["hour=7/part.parquet"]


def test_predict_keeps_the_named_keys_only(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    out = tmp_path / "scored.parquet"
    unlabeled = tmp_path / "unlabeled.parquet"
    source = pq.read_table(data / "test").drop_columns(["is_click", "is_buy", "is_like", "watch_ratio", "shown_like"])
    pq.write_table(source, unlabeled)
    assert run_cli("predict", run, "--input", unlabeled, "-o", out, "--set", "data.keys=[row]") == 0
    table = pq.read_table(out)
    assert table.column_names == ["row", "pred_click", "pred_buy", "pred_like", "pred_ratio"]
    assert table["row"].equals(source["row"])
    assert (np.array(table["pred_buy"]) <= np.array(table["pred_click"])).all()
    assert run_cli("predict", run, "--input", out, "-o", out) == 2
    capsys.readouterr()
    assert run_cli("predict", run, "--input", tmp_path / "none", "-o", out) == 2
    assert "no file matches" in capsys.readouterr().err


def test_scores_are_written_in_large_row_groups_and_null_where_a_file_lacks_a_column(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    table = toy_table(150)
    strict = pa.schema([field.with_nullable(field.name != "row") for field in table.schema])
    (tmp_path / "in").mkdir()
    pq.write_table(table.cast(strict), tmp_path / "in" / "a.parquet")
    pq.write_table(table.drop_columns(["row"]), tmp_path / "in" / "b.parquet")
    monkeypatch.setattr("mtlrec.evaluation.predict.ROW_GROUP_ROWS", 128)
    assert run_cli("predict", run, "--input", tmp_path / "in" / "*.parquet", "-o", tmp_path / "s.parquet") == 0
    scores = pq.ParquetFile(tmp_path / "s.parquet")
    sizes = [scores.metadata.row_group(index).num_rows for index in range(scores.num_row_groups)]
    assert sizes == [128, 128, 44]
    found = scores.read()
    assert found["row"].to_pylist() == [*range(150), *[None] * 150]
    assert np.array(found["pred_click"])[:150] == pytest.approx(np.array(found["pred_click"])[150:])


def test_a_file_that_goes_while_it_is_scored_costs_its_rows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_job(tmp_path / "job.yaml", data, train={"max_steps": 1}), tmp_path / "run"
    assert run_cli("train", config, "-o", run) == 0
    (tmp_path / "in").mkdir()
    for index in range(2):
        pq.write_table(toy_table(60, index), tmp_path / "in" / f"{index}.parquet")
    schema = predict_module.output_schema

    def then_it_goes(*arguments: Any) -> pa.Schema:
        found = schema(*arguments)
        (tmp_path / "in" / "0.parquet").unlink()
        return found

    monkeypatch.setattr(predict_module, "output_schema", then_it_goes)
    skips = ["--set", "data.on_error=skip_row"]
    assert run_cli("predict", run, "--input", tmp_path / "in", "-o", tmp_path / "s.parquet", *skips) == 0
    assert pq.read_table(tmp_path / "s.parquet")["pred_click"].null_count == 60
    said = capsys.readouterr().err
    assert "0.parquet: is gone since the job began" in said
    assert "60 of 120 rows were left out (data.on_error)" in said


def test_ids_are_those_of_training_or_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vocabulary that was edited, a column that was numbers and is text: told, not scored."""
    tree = toy_tree(data)
    tree["tables"] |= {"word": {"rows": 50, "dim": 4}, "hash": {"rows": 50, "dim": 4}}
    words = {"transform": "vocabulary", "vocabulary": str(tmp_path / "words.txt")}
    tree["features"]["sparse"] += [
        {"name": "word", "column": "item_id", "table": "word"} | words,
        {"name": "hashed", "column": "item_id", "table": "hash", "transform": "hash"},
    ]
    tree["features"]["sparse"] = tree["features"]["sparse"][-2:]
    for table in ("user", "item"):
        del tree["tables"][table]
    (tmp_path / "words.txt").write_text("1\n2\n3\n")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    run, one = tmp_path / "run", ["--set", "train.max_steps=1"]
    assert run_cli("train", tmp_path / "job.yaml", "-o", run, *one) == 0
    table = pq.read_table(data / "test")
    as_text = table.set_column(table.column_names.index("item_id"), "item_id", table["item_id"].cast(pa.string()))
    pq.write_table(as_text, tmp_path / "text.parquet")
    capsys.readouterr()
    told = "features.sparse.hashed: its ids are hashes of text here and were hashes of numbers in training"
    for verb in (
        ["predict", run, "--input", tmp_path / "text.parquet", "-o", tmp_path / "s.parquet"],
        ["evaluate", run, "--set", f"data.test=[{tmp_path}/text.parquet]"],
        ["train", tmp_path / "job.yaml", "-o", tmp_path / "x", "--set", f"data.valid=[{tmp_path}/text.parquet]"],
    ):
        assert run_cli(*verb) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("0\n1\n2\n3\n")
    for verb in (
        ["evaluate", run],
        ["train", tmp_path / "job.yaml", "-o", run, "--resume"],
    ):
        assert run_cli(*verb) == 2
        assert "features.sparse.word: its ids are vocabulary" in capsys.readouterr().err
