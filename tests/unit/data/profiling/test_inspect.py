"""What inspect says against a plain count, and that what it proposes trains."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mtlrec.config.file import parse_config
from mtlrec.data.profiling.inspect import inspect
from mtlrec.data.profiling.propose import propose, render
from mtlrec.data.sources.files import split_root
from mtlrec.errors import DataError
from tests.support.ranks import run_cli
from tests.support.toy import toy_table, write_toy


@pytest.mark.parametrize(
    ("path", "root", "pattern"),
    [
        ("logs/train", "logs", "train"),
        ("logs/day=*/x.parquet", "logs", "day=*/x.parquet"),
        ("/a/b/*.parquet", "/a/b", "*.parquet"),
        ("a.parquet", ".", "a.parquet"),
        ("s3://b/logs/2*/**?region=x", "s3://b/logs?region=x", "2*/**"),
        ("/*.parquet", "/", "*.parquet"),
        ("s3://bucket", "s3://bucket", "."),
        ("/logs/day=1/hour=2/*.parquet", "/logs", "day=1/hour=2/*.parquet"),
        ("day=1/a.parquet", ".", "day=1/a.parquet"),
        ("s3://b/day=1/x.parquet?region=x", "s3://b?region=x", "day=1/x.parquet"),
        ("/day=1/=x/*.parquet", "/day=1/=x", "*.parquet"),
    ],
)
def test_roots_and_patterns(path: str, root: str, pattern: str) -> None:
    assert split_root(path) == (root, pattern)


def test_columns_are_counted(tmp_path: Path) -> None:
    table = pa.concat_tables([toy_table(300, 0), toy_table(257, 1)])
    report = inspect(str(write_toy(tmp_path) / "train"))
    assert (report.files, report.rows, report.row_groups) == (2, 557, 9)
    columns = {column.name: column for column in report.columns}
    for name in ("age", "user_id", "is_like", "item_id", "watch_ratio"):
        values = table[name].to_pylist()
        known = [value for value in values if value is not None]
        assert columns[name].nulls == len(values) - len(known)
        assert (columns[name].seen, columns[name].distinct) == (len(known), len(set(known)))
        assert (columns[name].min, columns[name].max) == (min(known), max(known))
        assert (columns[name].mean, columns[name].std) == pytest.approx((np.mean(known), np.std(known)))
    lists = table["recent_items"].to_pylist()
    items = [item for row in lists for item in row]
    assert columns["recent_items"].distinct == len(set(items))
    assert columns["recent_items"].max_length == max(map(len, lists))
    assert columns["recent_items"].mean_length == pytest.approx(len(items) / len(lists))


def test_the_proposal_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy(tmp_path / "data")
    job = tmp_path / "job.yaml"
    assert run_cli("inspect", tmp_path / "data" / "train", "--config", job) == 0
    assert "557 rows" in capsys.readouterr().out
    parsed = parse_config(job.read_text())
    assert [task.name for task in parsed.tasks] == ["click", "buy", "like", "shown_like"]
    assert "# may be outcomes, so no features: watch_ratio, watch_s" in job.read_text()
    assert not {"watch_ratio", "watch_s"} & {feature.name for feature in parsed.features.dense}
    assert parsed.data.keys == []
    recent = next(feature for feature in parsed.features.sparse if feature.name == "recent_items")
    assert recent.weights is None, "recent_weights is not called after it"
    assert run_cli("train", job, "-o", tmp_path / "run", "--set", "train.max_steps=2", "--set", "train.device=cpu") == 0
    assert run_cli("inspect", tmp_path / "data" / "train", "--config", job) == 2
    assert "is there already" in capsys.readouterr().err


def test_text_needs_hashing_and_odd_columns_are_left_out(tmp_path: Path) -> None:
    table = pa.table(
        {
            "country": ["de", "fr", None, "de"],
            "big_id": [1, 10**12, 5, 7],
            "constant": [1, 1, 1, 1],
            "odd name": [1, 2, 3, 4],
            "when": pa.array([1, 2, 3, 4], pa.timestamp("s")),
            "tags": [["a"], ["b", "c"], [], None],
            "price": [1.0, 1.0, 1.0, 500.0],
            "kind": pa.array(["x", "y", "x", None]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    proposal = propose(inspect(str(tmp_path / "a.parquet")), str(tmp_path / "a.parquet"), "job")
    features = {feature["name"]: feature for feature in proposal.tree["features"]["sparse"]}
    assert (
        features["country"]["transform"] == features["big_id"]["transform"] == features["tags"]["transform"] == "hash"
    )
    assert features["kind"]["transform"] == "hash"
    assert features["tags"]["max_length"] == 2
    assert proposal.left_out == ["constant", "odd name", "when"]
    text = render(proposal)
    assert "no 0/1 column with a name like a label" in text
    tree = yaml.safe_load(text) | {"tasks": [{"name": "t", "label": "t"}]}
    assert parse_config(yaml.safe_dump(tree)).features.sparse[0].name == "country"


def test_json_and_a_missing_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy(tmp_path)
    assert run_cli("inspect", tmp_path / "train" / "*.parquet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 557
    assert run_cli("inspect", tmp_path / "nowhere") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(DataError, match="no file matches"):
        inspect(str(tmp_path / "*.csv"))


def test_a_log_by_day_is_split_by_day_and_its_keys_are_keys(tmp_path: Path) -> None:
    for day in range(1, 5):
        folder = tmp_path / "log" / f"date=2026-11-0{day}" / "hour=3"
        folder.mkdir(parents=True)
        table = pa.table(
            {
                "impression_id": [f"{day}-{row}" for row in range(400)],
                "is_click": np.arange(400) % 3 == 0,
                "on": np.arange(400) % 7,
                "no": np.arange(400) % 5 == 0,
                "half": pa.array(np.arange(400) / 7, pa.float16()),
                "holes": np.where(np.arange(400) % 9, np.arange(400) / 3, np.nan),
                "tags": [[1, 2 + row % 5] for row in range(400)],
                "tag_weights": [[0.5, 1.0]] * 200 + [[0.5, 2.0]] * 200,
            }
        )
        pq.write_table(table, folder / "a.parquet")
    (tmp_path / "log" / "words.txt").write_text("not Parquet")
    (tmp_path / "log" / "date=2026-11-01" / "broken.parquet").write_bytes(b"PAR1")
    path = str(tmp_path / "log" / "date=2026-11-0*")
    report = inspect(path)
    assert "broken.parquet: not a readable Parquet file" in report.left_out[0]
    proposal = propose(report, path, "my job")
    data = proposal.tree["data"]
    assert data["train"] == ["date=2026-11-01", "date=2026-11-02"]
    assert (data["valid"], data["test"]) == (["date=2026-11-03"], ["date=2026-11-04"])
    whole = str(tmp_path / "log")
    assert propose(inspect(whole), whole, "job").tree["data"]["test"] == ["log/**/date=2026-11-04"]
    assert data["keys"] == ["impression_id"]
    assert proposal.left_out == ["date", "hour"]
    job = parse_config(render(proposal))
    assert job.name == "my_job"
    assert [feature.name for feature in job.features.dense] == ["no", "half", "holes"]
    assert {feature.name: feature.weights for feature in job.features.sparse} == {"on": None, "tags": "tag_weights"}
    assert json.loads(json.dumps(proposal.tree)) == proposal.tree
    (tmp_path / "log" / "date=2026-11-01" / "broken.parquet").unlink()
    for text in (render(proposal), render(propose(inspect(whole), whole, "job"))):
        (tmp_path / "job.yaml").write_text(text)
        run = ["-o", tmp_path / "run", "--overwrite", "--set", "train.max_steps=1"]
        assert run_cli("train", tmp_path / "job.yaml", *run) == 0


@pytest.mark.parametrize("name", ["no", "123", "my job"])
def test_whatever_the_file_is_called_the_proposal_is_a_job(name: str, tmp_path: Path) -> None:
    write_toy(tmp_path / "data")
    path = str(tmp_path / "data" / "train")
    assert parse_config(render(propose(inspect(path), path, name))).tasks


def test_text_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"b"]).buffers())
    pq.write_table(pa.table({"t[x]": ["b[/red]", "[bold]a"], "broken": broken}), tmp_path / "a.parquet")
    assert run_cli("inspect", tmp_path / "a.parquet") == 0
    out = capsys.readouterr().out
    assert "b[/red]" in out
    assert "t[x]" in out
    assert "\ufffd" in out


def test_a_null_list_has_no_items(tmp_path: Path) -> None:
    pq.write_table(pa.table({"tags": [[1, 2], None, [3], []]}), tmp_path / "a.parquet")
    (tags,) = inspect(str(tmp_path / "a.parquet")).columns
    assert (tags.mean_length, tags.max_length, tags.seen) == (0.75, 2, 3)
