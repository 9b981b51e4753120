"""The synthetic feed: a funnel with known truth, the planted correlation, honest histories, streaming, determinism."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mtlrec.datasets import planted, synthetic, writing
from mtlrec.errors import UserError

ROWS = 200_000  # more than one chunk
TASKS = planted.TASKS


def read(out: Path, split: str) -> pa.Table:
    parts = sorted((out / split).glob("part-*.parquet"), key=lambda path: int(path.stem.removeprefix("part-")))
    return ds.dataset(parts).to_table()


def read_all(out: Path) -> pa.Table:
    return pa.concat_tables([read(out, split) for split in writing.SPLITS if any((out / split).iterdir())])


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Mann-Whitney by ranks; the scores here have no ties to speak of."""
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    n = int(label.sum())
    return (rank[label == 1].sum() - n * (n + 1) / 2) / (n * (len(label) - n))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feed")
    synthetic.feed(folder, ROWS, users=2_000, items=500)
    return folder


@pytest.fixture(scope="module")
def feed(out: Path) -> pa.Table:
    return read_all(out)


def test_the_schema_describes_what_was_written(out: Path, feed: pa.Table) -> None:
    schema = json.loads((out / "schema.json").read_text(encoding="utf-8"))
    assert schema["rows"] == {"total": ROWS, "train": 160_000, "valid": 20_000, "test": 20_000}
    named = [*schema["keys"], *schema["sparse"], *schema["lists"], *schema["dense"], *schema["labels"]]
    assert {*named, *schema["truth"].values()} == set(feed.column_names)
    for name, entry in schema["sparse"].items():
        ids = feed[name].to_numpy()
        assert ids.dtype == np.int64
        assert 0 <= ids.min() <= ids.max() < entry["rows"]
    for name, entry in schema["lists"].items():
        ids, lengths = feed[name].combine_chunks(), np.diff(feed[name].combine_chunks().offsets)
        assert 0 <= ids.flatten().to_numpy().min() <= ids.flatten().to_numpy().max() < entry["rows"]
        assert (lengths.min(), lengths.max()) == (0, entry["max_length"])
    for name, entry in schema["dense"].items():
        values = read(out, "train")[name].to_numpy()
        assert values.dtype == np.float32
        assert entry["mean"] == pytest.approx(values.astype(np.float64).mean(), rel=1e-6)
        assert entry["std"] == pytest.approx(values.astype(np.float64).std(), rel=1e-4)
    for task in TASKS:
        counted = {split: int(read(out, split)[task].to_numpy().astype(int).sum()) for split in writing.SPLITS}
        assert schema["labels"][task]["positives"] == counted


def test_a_child_implies_its_parent_and_its_truth_is_below_the_parents(feed: pa.Table) -> None:
    for child, parent in planted.PARENT.items():
        happened = feed[child].to_numpy() > 0
        assert happened.any()
        assert (feed[parent].to_numpy()[happened] == 1).all()
        if child in TASKS:
            assert (feed[f"true_{child}"].to_numpy() < feed[f"true_{parent}"].to_numpy()).all()


def test_labels_come_from_the_written_truth(feed: pa.Table) -> None:
    """In ten bins by the truth, the mean label is the mean truth to within 4.5 standard errors; watch time likewise."""
    for name in planted.SCORES:
        truth, label = feed[f"true_{name}"].to_numpy(), feed[name].to_numpy()
        for rows in np.array_split(np.argsort(truth), 10):
            error = label[rows].std() / np.sqrt(len(rows))
            assert abs(label[rows].mean() - truth[rows].mean()) < 4.5 * error, name


def test_click_can_be_predicted_but_not_too_well(out: Path) -> None:
    schema = json.loads((out / "schema.json").read_text(encoding="utf-8"))
    test = read(out, "test")
    for task in TASKS:
        exact = auc(test[task].to_numpy(), test[f"true_{task}"].to_numpy())
        assert schema["bayes_auc"][task] == pytest.approx(exact, abs=2e-3)
    assert 0.72 < schema["bayes_auc"]["click"] < 0.80


@pytest.mark.parametrize("correlation", [-1.0, -0.5, 0.0, 0.7, 1.0])
def test_the_planted_logits_correlate_as_asked(tmp_path: Path, correlation: float) -> None:
    synthetic.feed(tmp_path, 40_000, users=2_000, items=500, correlation=correlation)
    feed = read_all(tmp_path)
    p = {task: feed[f"true_{task}"].to_numpy().astype(np.float64) for task in TASKS}
    conditional = {"click": p["click"]}
    conditional |= {task: p[task] / p[parent] for task, parent in planted.PARENT.items() if task in TASKS}
    for child, parent in planted.PARENT.items():
        if child in TASKS:
            found = np.corrcoef(logit(conditional[child]), logit(conditional[parent]))[0, 1]
            assert found == pytest.approx(correlation, abs=0.04)
    assert np.corrcoef(logit(conditional["like"]), logit(p["click"]))[0, 1] == pytest.approx(correlation**2, abs=0.04)


def test_histories_are_the_users_earlier_clicks_across_chunks(out: Path) -> None:
    rows = read_all(out).select(["row_id", "user_id", "item_id", "click", "recent_items"])
    table = rows.filter(pa.compute.less(rows["user_id"], 12)).to_pylist()
    assert table[-1]["row_id"] > synthetic.CHUNK_ROWS
    known: dict[int, list[int]] = {}
    compared = 0
    for row in table:
        history = known.setdefault(row["user_id"], list(row["recent_items"]))
        assert row["recent_items"] == history[-20:]
        compared += 1
        if row["click"]:
            history.append(row["item_id"])
    assert compared > 500


def test_items_are_zipf_and_rows_are_in_the_order_of_time(out: Path, feed: pa.Table) -> None:
    assert feed["row_id"].to_numpy().tolist() == list(range(ROWS))
    assert (np.diff(feed["time_ms"].to_numpy()) >= 0).all()
    share = np.sort(np.bincount(feed["item_id"].to_numpy(), minlength=500))[::-1] / ROWS
    assert share[0] > 8 * share[250]
    assert np.unique(feed["hour"].to_numpy()).tolist() == list(range(24))


@pytest.mark.parametrize("rows_per_file", [7_001, 100_000])
def test_the_rows_do_not_depend_on_the_files(tmp_path: Path, out: Path, feed: pa.Table, rows_per_file: int) -> None:
    schema = synthetic.feed(tmp_path, ROWS, users=2_000, items=500, rows_per_file=rows_per_file)
    assert schema == json.loads((out / "schema.json").read_text(encoding="utf-8"))
    assert read_all(tmp_path).equals(feed)
    sizes = [pq.read_metadata(path).num_rows for path in (tmp_path / "train").iterdir()]
    assert max(sizes) <= rows_per_file
    assert len(sizes) == -(-160_000 // rows_per_file)


def test_another_seed_is_another_world_and_a_second_run_leaves_no_old_parts(tmp_path: Path) -> None:
    synthetic.feed(tmp_path, 5_000, users=100, items=50, rows_per_file=1_000)
    first = read_all(tmp_path)
    synthetic.feed(tmp_path, 5_000, users=100, items=50, seed=1)
    second = read_all(tmp_path)
    assert second.num_rows == 5_000
    assert not second["item_id"].equals(first["item_id"])


@pytest.mark.parametrize("rows", [10, 137])
def test_a_handful_of_rows_works(tmp_path: Path, rows: int) -> None:
    schema = synthetic.feed(tmp_path, rows, users=5, items=planted.CATEGORIES)
    assert schema["rows"]["total"] == read_all(tmp_path).num_rows == rows
    assert set(schema["undecidable"]) == set(TASKS)


def test_a_split_may_be_empty(tmp_path: Path) -> None:
    schema = synthetic.feed(tmp_path, 100, users=5, items=50, splits=(1.0, 0.0, 0.0))
    assert schema["rows"] == {"total": 100, "train": 100, "valid": 0, "test": 0}
    assert schema["bayes_auc"]["click"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows: 0"),
        ({"users": 0}, "users: 0"),
        ({"items": 3}, "items: 3"),
        ({"seed": -1}, "seed: -1"),
        ({"correlation": 1.5}, r"correlation: 1\.5"),
        ({"correlation": float("nan")}, "correlation: nan"),
        ({"rows_per_file": 0}, "rows_per_file: 0"),
        ({"splits": (0.5, 0.1, 0.1)}, "splits"),
        ({"splits": (0.0, 0.5, 0.5)}, "splits"),
        ({"splits": (float("nan"), 0.5, 0.5)}, "splits"),
        ({"history": 0}, "history: 0"),
        ({"rates": {"buy": 0.1}}, "rates: buy is no task of the feed; tasks are click, long_view"),
        ({"rates": {"share": 0.0}}, "rates: share = 0 is out of reach"),
        ({"rates": {"click": 0.1, "like": 0.1}}, "rates: like = 0.1 is out of reach; it lies between 0 and 0.0"),
    ],
)
def test_a_bad_argument_is_named_before_anything_is_written(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        synthetic.feed(tmp_path / "out", **({"rows": 100} | arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_rate_is_planted_and_the_rest_stays_as_it_was(tmp_path: Path, feed: pa.Table) -> None:
    synthetic.feed(tmp_path, ROWS, users=2_000, items=500, rates={"share": 0.005, "like": 0.1})
    rare = read_all(tmp_path)
    assert rare["true_share"].to_numpy().mean() == pytest.approx(0.005, rel=0.02)
    assert rare["share"].to_numpy().mean() == pytest.approx(0.005, rel=0.1)
    assert rare["true_like"].to_numpy().mean() == pytest.approx(0.1, rel=0.02)
    assert rare["true_click"].equals(feed["true_click"])
    assert rare["true_long_view"].equals(feed["true_long_view"])
    assert json.loads((tmp_path / "schema.json").read_text())["source"]["rate_share"] == 0.005


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from mtlrec.datasets import synthetic;"
        "synthetic.feed(Path(sys.argv[1]), int(sys.argv[2]), users=2000, items=500);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak_mib(rows: int) -> float:
        root = Path(__file__).resolve().parents[3]
        command = [sys.executable, "-c", program, str(tmp_path / str(rows)), str(rows)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout) / 1024

    small, large = peak_mib(300_000), peak_mib(1_500_000)
    assert large < small + 100, f"{small:.0f} MiB for 300k rows, {large:.0f} MiB for 1.5M"


@pytest.mark.slow
def test_a_linear_model_stays_well_below_the_bayes_classifier(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from benchmarks import logistic_regression

    synthetic.feed(tmp_path, 200_000)
    arguments = [str(tmp_path), "--labels", "click", "--max-iterations", "60"]
    (result,) = logistic_regression.run(logistic_regression._parser().parse_args(arguments))
    assert 0.5 < result["share_of_bayes"] < 0.85
