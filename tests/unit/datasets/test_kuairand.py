"""KuaiRand: no look into the future, ids from the train split, raw labels, and errors that name the column."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlrec.datasets import kuairand, writing
from mtlrec.errors import UserError

SHARED = Path(os.environ.get("MTLREC_SHARED", Path(__file__).resolve().parents[3] / "../shared"))
REAL = SHARED / "data/kuairand/kuairand_27k_kcore15.tsv.gz"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"no {REAL}; set MTLREC_SHARED to the folder above data/")
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def made_log(rows: int = 400) -> list[dict[str, int]]:
    """A log in the publisher's own columns, with ties in time and rows out of order."""
    rng = np.random.default_rng(0)
    log = []
    for _ in range(rows):
        row = dict.fromkeys(HEADER.split(","), 0)
        row |= {"user_id": int(rng.integers(100, 106)), "video_id": int(rng.integers(50, 90)), "date": 20220408}
        row |= {
            "hourmin": 1300,
            "time_ms": 1649400000000 + int(rng.integers(120)),
            "duration_ms": int(rng.integers(3)) * 1000,
        }
        row |= {"play_time_ms": int(rng.integers(20000)), "is_click": int(rng.random() < 0.6)}
        row |= {"long_view": int(rng.random() < 0.4), "is_like": int(rng.random() < 0.5)}
        log.append(row)
    return log


def write_log(path: Path, log: list[dict[str, int]]) -> Path:
    lines = [HEADER, *[",".join(str(v) for v in row.values()) for row in log]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_all(out: Path) -> list[dict]:
    return [row for split in writing.SPLITS for row in pq.read_table(out / split).to_pylist()]


def expected_histories(rows: list[dict], length: int, every: int) -> list[tuple[list[int], list[int]]]:
    """(written, recomputed by a plain loop over the past) of every `every`th row; `rows` is in the order written."""
    pairs = []
    for row in rows[::every]:
        past = [r for r in rows if r["raw_user_id"] == row["raw_user_id"] and r["time_ms"] < row["time_ms"]]
        past = sorted((r for r in past if r["click"] == 1 and r["video_id"] > 0), key=lambda r: r["time_ms"])
        pairs.append((row["recent_videos"], [r["video_id"] for r in past][-length:]))
    return pairs


def check_counts(rows: list[dict], train_rows: int, every: int) -> None:
    """past_impressions and past_click_rate against a plain loop."""
    prior = np.mean([r["click"] for r in rows[:train_rows]])
    for row in rows[::every]:
        past = [r for r in rows if r["raw_user_id"] == row["raw_user_id"] and r["time_ms"] < row["time_ms"]]
        assert row["past_impressions"] == len(past)
        clicks = sum(r["click"] for r in past)
        assert row["past_click_rate"] == pytest.approx((clicks + 20 * prior) / (len(past) + 20), rel=1e-5)


def test_the_publishers_own_columns_with_ties_and_disorder(tmp_path: Path) -> None:
    log = made_log()
    schema = kuairand.prepare(write_log(tmp_path / "log.csv", log), tmp_path / "out", history=7, min_video_rows=1)
    rows = read_all(tmp_path / "out")
    assert [row["time_ms"] for row in rows] == sorted(row["time_ms"] for row in log)
    for written, recomputed in expected_histories(rows, 7, every=1):
        assert written == recomputed
    assert max(len(row["recent_videos"]) for row in rows) == 7
    check_counts(rows, schema["rows"]["train"], every=5)
    assert sum(row["like"] for row in rows) == sum(row["is_like"] for row in log)
    for row in rows:
        assert (row["watch_ratio"] is None) == (row["duration_known"] == 0.0)
        assert row["watch_ratio"] is None or 0 <= row["watch_ratio"] <= 5
        assert (row["hour"], row["weekday"]) == (13, 4)  # 8 April 2022 was a Friday
    changed = sum(row["long_view"] and not row["is_click"] for row in log)
    assert sum(schema["edges"][0]["changed"].values()) == changed
    assert sum(row["long_view"] for row in rows) == sum(row["long_view"] for row in log)


def test_no_millisecond_is_in_two_splits(tmp_path: Path) -> None:
    kuairand.prepare(write_log(tmp_path / "log.csv", made_log()), tmp_path / "out")
    times = [set(pq.read_table(tmp_path / "out" / split)["time_ms"].to_pylist()) for split in writing.SPLITS]
    assert max(times[0]) < min(times[1])
    assert max(times[1]) < min(times[2])


def test_what_a_later_row_says_does_not_change_an_earlier_one(tmp_path: Path) -> None:
    log = sorted(made_log(), key=lambda row: row["time_ms"])
    changed = [dict(row) for row in log]
    for row in changed[300:]:
        row["is_click"], row["user_id"] = 1 - row["is_click"], 100
    out = [tmp_path / "a", tmp_path / "b"]
    for folder, rows in zip(out, (log, changed), strict=True):
        kuairand.prepare(write_log(tmp_path / "log.csv", rows), folder)
    first = [pq.read_table(folder / "train") for folder in out]
    earlier = sum(row["time_ms"] < log[300]["time_ms"] for row in log)
    compared = min(earlier, first[0].num_rows)
    assert compared > 200
    assert first[0].slice(0, compared).equals(first[1].slice(0, compared))


@pytest.mark.parametrize(
    ("source", "history", "message"),
    [
        (None, 50, r"zenodo\.org.*--source"),
        ("missing", 50, "no .tsv"),
        ("log.csv", 0, "history: 0"),
        ("short.csv", 50, "3 rows; at least 10"),
        ("still.csv", 50, "time_ms: too few different times"),
        ("bad.csv", 50, r"row 3, click: 7"),
        ("columns.csv", 50, r"columns\.csv: no column 'video_id'"),
        ("text.csv", 50, r"text\.csv: cannot be read"),
    ],
)
def test_errors_are_one_line_and_say_what_is_wrong(
    tmp_path: Path, source: str | None, history: int, message: str
) -> None:
    log = made_log(40)
    write_log(tmp_path / "log.csv", log)
    write_log(tmp_path / "short.csv", log[:3])
    write_log(tmp_path / "still.csv", [row | {"time_ms": 5} for row in log])
    write_log(tmp_path / "bad.csv", [log[0], log[1] | {"is_click": 7}, *log[2:]])
    text = (tmp_path / "log.csv").read_text(encoding="utf-8")
    (tmp_path / "columns.csv").write_text(text.replace("video_id", "photo_id"), encoding="utf-8")
    (tmp_path / "text.csv").write_text(text.replace("20220408", "Friday"), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        kuairand.prepare(None if source is None else tmp_path / source, tmp_path / "out", history)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kuairand")
    kuairand.prepare(REAL.parent, out, min_video_rows=1)
    return out


def test_rare_videos_share_the_id_of_new_ones(tmp_path: Path) -> None:
    kuairand.prepare(write_log(tmp_path / "log.csv", made_log()), tmp_path / "out", min_video_rows=5)
    train = pq.read_table(tmp_path / "out" / "train")
    rows_of = Counter(train["raw_video_id"].to_pylist())
    assert min(rows_of.values()) < 5 <= max(rows_of.values())
    for raw, video in zip(train["raw_video_id"].to_pylist(), train["video_id"].to_pylist(), strict=True):
        assert (video > 0) == (rows_of[raw] >= 5)
    assert all(0 not in history for history in train["recent_videos"].to_pylist())
    with pytest.raises(UserError, match="min_video_rows: 0 is not positive"):
        kuairand.prepare(tmp_path / "log.csv", tmp_path / "other", min_video_rows=0)


@needs_real
def test_the_figures_of_the_selection(real: Path) -> None:
    schema = json.loads((real / "schema.json").read_text(encoding="utf-8"))
    assert schema["rows"] == {"total": 41828, "train": 29279, "valid": 4183, "test": 8366}
    positives = {k: sum(v["positives"].values()) for k, v in schema["labels"].items() if v["kind"] == "binary"}
    assert positives == {
        "click": 27484,
        "long_view": 19320,
        "follow": 304,
        "comment": 1258,
        "forward": 326,
        "profile_enter": 2214,
        "like": 33745,
    }
    assert sum(schema["labels"]["watch_ratio"]["known"].values()) == 41828 - 7738
    assert schema["undecidable"] == ["follow", "forward"]
    long_view = next(edge for edge in schema["edges"] if edge["child"] == "long_view")
    assert sum(long_view["changed"].values()) == 231
    unseen = schema["unseen_in_train"]["test"]["video_id"] / schema["rows"]["test"]
    assert unseen == pytest.approx(0.71, abs=0.01)


@needs_real
def test_histories_of_the_real_log_are_what_a_loop_over_the_past_finds(real: Path) -> None:
    rows = read_all(real)
    pairs = expected_histories(rows, 50, every=997)
    assert sum(len(written) for written, _ in pairs) > 300
    for written, recomputed in pairs:
        assert written == recomputed
    check_counts(rows, 29279, every=2003)


@needs_real
def test_ids_come_from_the_train_split_and_outcomes_are_no_inputs(real: Path) -> None:
    schema = json.loads((real / "schema.json").read_text(encoding="utf-8"))
    names = json.loads((real / "vocabularies.json").read_text(encoding="utf-8"))
    train = pq.read_table(real / "train")
    assert sorted(set(train["raw_video_id"].to_pylist())) == names["video_id"][1:]
    for row in pq.read_table(real / "test").slice(0, 2000).to_pylist():
        for column in ("user_id", "video_id"):
            raw = row[f"raw_{column}"]
            assert names[column][row[column]] == (raw if raw in names[column] else None)
    assert len(names["video_id"]) == schema["sparse"]["video_id"]["rows"] == schema["lists"]["recent_videos"]["rows"]
    written = {*pq.read_schema(real / "train/part-0.parquet").names}
    assert not written & {"play_time_ms", "comment_stay_time", "timestamp"}
    assert pa.types.is_int64(train.schema.field("recent_videos").type.value_type)


@needs_real
def test_a_plain_file_and_a_gzip_give_the_same(real: Path, tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_bytes(gzip.decompress(REAL.read_bytes()))
    kuairand.prepare(tmp_path / "log.tsv", tmp_path / "out", min_video_rows=1)
    for split in writing.SPLITS:
        assert pq.read_table(tmp_path / "out" / split).equals(pq.read_table(real / split))
