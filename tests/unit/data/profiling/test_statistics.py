"""Statistics in one pass against NumPy on the whole column, and a job that trains on them."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mtlrec.config import JobConfig
from mtlrec.config.file import load_config
from mtlrec.config.job import STATISTICS_TO_COME
from mtlrec.config.statistics import Moments
from mtlrec.data.profiling import statistics
from mtlrec.data.profiling.statistics import Sample
from tests.support.ranks import run_cli
from tests.support.toy import toy_table, toy_tree, write_toy


def tree_of(root: Path) -> dict[str, Any]:
    tree = toy_tree(root)
    tree["features"]["dense"] = [
        {"name": "age", "transform": "standardize"},
        {"name": "price", "transform": ["log1p", "standardize"]},
    ]
    tree["features"]["sparse"] += [
        {"name": "bucket", "column": "price", "table": "buckets", "transform": "bucketize"},
        {
            "name": "word",
            "column": "recent_items",
            "table": "words",
            "transform": "vocabulary",
            "vocabulary": "w/v.txt",
        },
    ]
    tree["tables"] |= {"buckets": {"rows": 5, "dim": 4}, "words": {"rows": 9, "dim": 4}}
    return tree


def test_against_the_whole_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy(tmp_path / "data")
    job, out = tmp_path / "job.yaml", tmp_path / "stats.json"
    job.write_text(yaml.safe_dump(tree_of(tmp_path / "data")))
    assert run_cli("train", job, "-o", tmp_path / "run") == 2
    assert "standardize needs mean and std" in capsys.readouterr().err
    assert run_cli("prepare", "stats", job, "--output", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == [str(out), str(tmp_path / "data" / "w" / "v.txt")]
    table = pa.concat_tables([toy_table(300, 0), toy_table(257, 1)])
    age = table["age"].drop_null().to_numpy()
    price = table["price"].to_numpy().astype(np.float64)
    found = json.loads(out.read_text())
    assert found["dense"]["age"] == pytest.approx({"mean": age.mean(), "std": age.std()})
    logs = np.log1p(price)
    assert found["dense"]["price"] == pytest.approx({"mean": logs.mean(), "std": logs.std()}, rel=1e-5)
    assert found["sparse"]["bucket"]["boundaries"] == pytest.approx(np.quantile(price, [0.2, 0.4, 0.6, 0.8]).tolist())
    counts = Counter(item for row in table["recent_items"].to_pylist() for item in row)
    words = sorted(map(str, counts), key=lambda word: (-counts[int(word)], word))[:8]
    assert (tmp_path / "data" / "w" / "v.txt").read_text().split() == words
    filled = ["--set", f"data.statistics={out}", "--set", "train.max_steps=2"]
    assert run_cli("train", job, "-o", tmp_path / "run", *filled) == 0


def test_features_that_share_a_vocabulary_are_counted_together(tmp_path: Path) -> None:
    root = write_toy(tmp_path / "data", train=(300,))
    tree = tree_of(root)
    shared = {"transform": "vocabulary", "vocabulary": "items.txt", "table": "words"}
    tree["features"]["sparse"] = [
        {"name": "recent", "column": "recent_items"} | shared,
        {"name": "item", "column": "item_id"} | shared | {"table": "few"},
    ]
    tree["tables"] = {"words": {"rows": 9, "dim": 4}, "few": {"rows": 5, "dim": 4}}
    tree["features"]["dense"] = []
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("prepare", "stats", tmp_path / "job.yaml", "--output", tmp_path / "stats.json") == 0
    table = toy_table(300, 0)
    counts = Counter(item for row in table["recent_items"].to_pylist() for item in row)
    counts.update(table["item_id"].to_pylist())
    words = sorted(map(str, counts), key=lambda word: (-counts[int(word)], word))[:4]
    assert (root / "items.txt").read_text().split() == words, "as many as the smaller table has rows for"


@pytest.mark.parametrize("parts", [1, 7])
def test_moments_in_parts(parts: int) -> None:
    values, moments = np.random.default_rng(0).normal(1e6, 3, 1000), Moments()
    for part in np.array_split(values, parts):
        moments.add(part)
    moments.add(np.empty(0))
    assert (moments.mean, moments.std) == pytest.approx((values.mean(), values.std()))
    assert (moments.low, moments.high, moments.count) == (values.min(), values.max(), 1000)


def test_a_sample_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 1000)
    sample = Sample(np.random.default_rng(0))
    for part in np.array_split(np.arange(20_000.0), 13):
        sample.add(part)
    assert len(sample.values) == 1000
    assert abs(sample.values.mean() - 10_000) < 4 * 20_000 / np.sqrt(12 * 1000)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("age", pa.array([3.0, 3.0, None]), "features.dense.age: has one value only"),
        ("age", pa.array([None] * 3, pa.float64()), "features.dense.age: has nulls only"),
        ("price", pa.array([None] * 3, pa.float64()), "has nulls only"),
        ("recent_items", pa.array([["a\nb"], [], []]), "has a line break"),
        ("recent_items", pa.array([["a\r"], [], []]), "has a line break"),
        (
            "recent_items",
            pa.array([[], [], []], pa.list_(pa.string())),
            "no value of a vocabulary is seen often enough",
        ),
        ("age", pa.array([0.1] * 3), "features.dense.age: has one value only"),  # whose mean is not 0.1
        ("age", pa.array([-1e200, 1e200, 0]), "features.dense.age: values up to 1e\\+200 have no finite deviation"),
    ],
)
def test_nothing_to_learn_from(
    tmp_path: Path, column: str, values: pa.Array, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = toy_table(3)
    if column == "recent_items":
        table = table.set_column(table.column_names.index("age"), "age", pa.array([1.0, 2.0, 3.0]))
    (tmp_path / "train").mkdir()
    table = table.set_column(table.column_names.index(column), column, values)
    pq.write_table(table, tmp_path / "train" / "a.parquet")
    tree = tree_of(tmp_path)
    tree["features"]["sparse"] = [one for one in tree["features"]["sparse"] if one["name"] != "recent_items"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("prepare", "stats", tmp_path / "job.yaml", "--output", tmp_path / "s.json") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "s.json").exists()


def test_a_job_that_leaves_nothing_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = toy_tree(write_toy(tmp_path))
    tree["features"]["dense"] = []
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert load_config(tmp_path / "job.yaml", statistics_to_come=True)
    assert run_cli("prepare", "stats", tmp_path / "job.yaml") == 2
    assert "nothing to find" in capsys.readouterr().err


def test_many_digits_and_rows_that_are_left_out(tmp_path: Path) -> None:
    table, tree = toy_table(600), toy_tree(tmp_path, data={"on_error": "skip_row"})
    times = 1_700_000_000_000 + np.arange(600) * 100
    prices = np.where(np.arange(600) == 7, np.inf, 1.0 + np.arange(600))
    for name, values in (("age", times), ("price", prices)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    (tmp_path / "train").mkdir()
    pq.write_table(table, tmp_path / "train" / "a.parquet")
    tree["features"]["dense"] = [{"name": name, "transform": "standardize"} for name in ("age", "price")]
    job = JobConfig.model_validate(tree, context={STATISTICS_TO_COME: True})
    found, kept = statistics.find(job).statistics.dense, np.arange(600) != 7
    assert found["age"].std == pytest.approx(times[kept].std())
    assert found["age"].mean == pytest.approx(times[kept].mean(), rel=1e-12)
    assert found["price"].mean == pytest.approx(prices[kept].mean())


def test_as_training_would_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What max_length cuts off and what on_error leaves out is not counted, and is said."""
    tree = tree_of(tmp_path)
    tree["features"]["sparse"] = [
        one | ({"max_length": 1} if one["name"] == "word" else {})
        for one in tree["features"]["sparse"]
        if one["name"] in ("word", "user_id", "item_id")
    ]
    tree["tables"].pop("buckets")
    tree["features"]["dense"] = [{"name": "age", "transform": "standardize"}]
    tree["data"] |= {"on_error": "skip_row", "max_skipped": 4}
    table = toy_table(6)
    for column, values in (
        ("age", pa.array([1.0, 2.0, 3.0, np.inf, 4.0, 5.0])),
        ("recent_items", pa.array([["old"] * 9 + ["new"]] * 3 + [["bad"]] + [["old"] * 9 + ["newer"]] * 2)),
    ):
        table = table.set_column(table.column_names.index(column), column, values)
    (tmp_path / "train").mkdir()
    pq.write_table(table, tmp_path / "train" / "a.parquet")
    pq.write_table(table.slice(0, 3).drop_columns(["age"]), tmp_path / "train" / "b.parquet")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    stats = ["prepare", "stats", tmp_path / "job.yaml", "--output", tmp_path / "s.json"]
    assert run_cli(*stats) == 0
    said = capsys.readouterr().err
    assert "a.parquet: row group 0, row 3: column 'age' holds inf" in said
    assert "b.parquet: no column 'age'" in said
    assert (tmp_path / "w" / "v.txt").read_text() == "new\nnewer\n"
    assert json.loads((tmp_path / "s.json").read_text())["dense"]["age"]["mean"] == 3.0
    assert run_cli(*stats, "--set", "data.max_skipped=3") == 2
    assert "4 rows were left out, data.max_skipped allows 3" in capsys.readouterr().err
    assert run_cli(*stats, "--set", "data.on_error=skip_file", "--set", "data.max_skipped=9") == 2  # nothing is left
    assert "features.dense.age: has nulls only" in capsys.readouterr().err


def test_what_is_given_or_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tree_of(write_toy(tmp_path / "data"))
    tree["features"]["sparse"][-2]["boundaries"] = [1.0, 5.0]
    (tmp_path / "data" / "w").mkdir()
    (tmp_path / "data" / "w" / "v.txt").write_text("3\n")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    stats = ["prepare", "stats", tmp_path / "job.yaml", "--output", tmp_path / "s.json"]
    assert run_cli(*stats, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == [str(tmp_path / "s.json")]
    assert list(found["dense"]) == ["age", "price"]
    assert not found["sparse"]
    assert (tmp_path / "data" / "w" / "v.txt").read_text() == "3\n"


def test_a_vocabulary_may_lie_elsewhere(tmp_path: Path) -> None:
    tree = tree_of(write_toy(tmp_path / "data"))
    tree["features"]["sparse"][-1]["vocabulary"] = str(tmp_path / "words" / "v.txt")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("prepare", "stats", tmp_path / "job.yaml", "--output", tmp_path / "s.json") == 0
    filled = ["--set", f"data.statistics={tmp_path}/s.json", "--set", "train.max_steps=1"]
    assert run_cli("train", tmp_path / "job.yaml", "-o", tmp_path / "run", *filled) == 0


def test_statistics_of_what_is_no_job_are_left_to_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tree_of(tmp_path)
    tree["features"] = {"dense": 5, "sparse": [{"name": "item_id", "table": "item"}]}
    tree["data"]["statistics"] = "nowhere.json"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("train", tmp_path / "job.yaml", "-o", tmp_path / "run") == 2
    assert "features.dense = 5" in capsys.readouterr().err
