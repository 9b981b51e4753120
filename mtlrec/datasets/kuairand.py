"""KuaiRand: short-video impressions of Kuaishou with clicks, long views, likes and rarer actions.

The publisher's log (or a selection of it) becomes Parquet, split by time: the oldest 70 % of the rows to train, the
next 10 % to valid, the newest 20 % to test. A random split would let a model see a user's future.

    labels   click, long_view, follow, comment, forward, profile_enter, like (0/1) and watch_ratio
    sparse   user_id, video_id (ids 1..n of the train split, 0 = unseen, or a video seen rarely), hour, weekday
    lists    recent_videos: the videos this user clicked before this impression, oldest first
    dense    duration_ms (0 where unknown) and duration_known; past_impressions and past_click_rate of the user

Everything that describes the past uses rows with a time_ms strictly below the row's own: rows of the same millisecond
are one page, whose outcomes are not known when it is ranked. What the user did after the impression (play_time_ms,
comment_stay_time) is a label or dropped, never an input.

Labels stay as logged, so a child may be 1 where its parent is 0 (a long view without a click): training takes child
and parent; schema.json's `edges` says how many rows that changes.
"""

import gzip
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mtlrec.datasets import writing
from mtlrec.errors import DataError
from mtlrec.io import one_line

PAGE = "https://zenodo.org/records/10439422"
FRACTIONS = (0.7, 0.1, 0.2)
# Label and the log's column. like is `label` in the selection of likes and hates, `is_like` in the publisher's logs.
LABELS = {
    "click": "is_click",
    "long_view": "long_view",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "profile_enter": "is_profile_enter",
    "like": "label",
}
# like is no child of click: more than a quarter of the likes are given without one.
CHILDREN_OF_CLICK = ("long_view", "follow", "comment", "forward", "profile_enter")
OTHER_COLUMNS = ("user_id", "video_id", "date", "hourmin", "time_ms", "play_time_ms", "duration_ms")
# Videos loop: play/duration has a tail up to 28 (99 % of the rows are below 4.4). A squared loss would follow it.
MAX_WATCH_RATIO = 5.0
# A user's past click rate is drawn to the train split's as if by this many impressions.
PRIOR_IMPRESSIONS = 20


def prepare(source: Path | None, out: Path, history: int = 50, min_video_rows: int = 10) -> writing.Schema:
    """Write the Parquet data set to `out`; returns the content of its schema.json.

    Args:
        source: a log of the publisher's (`log_standard_*.csv`) or a selection of one (tab-separated, may be .gz), or a
            folder whose *.tsv, *.tsv.gz, *.csv and *.csv.gz are such logs, taken together. The publisher's archives are
            several gigabytes; they are not downloaded: None is an error that says where they are.
        out: the folder to write to.
        history: the length of recent_videos, at most.
        min_video_rows: a video with fewer rows in the train split shares id 0 with those that only come later: most
            videos of the test split are new, and id 0 must be trained on something like them.

    Raises:
        DataError: no log at `source`, a column missing (named), a value that is no number, or `history` or
            `min_video_rows` below 1.

    Source: Gao et al., KuaiRand, CIKM 2022, doi:10.1145/3511808.3557624; CC BY-SA 4.0.
    """
    if min_video_rows < 1:
        raise DataError(
            f"min_video_rows: {min_video_rows} is not positive; 1 gives every video of the train split an id"
        )
    if history < 1:
        raise DataError(f"history: {history} is not positive; give the largest length of recent_videos, e.g. 50")
    paths = _find(source)
    log = pa.concat_tables([_read(path) for path in paths])
    if log.num_rows < 10:
        raise DataError(f"source: {source} has {log.num_rows} rows; at least 10 are needed for the three splits")
    return _write(log.sort_by("time_ms"), out, history, min_video_rows, [path.name for path in paths])


def _write(log: pa.Table, out: Path, history: int, min_video_rows: int, sources: list[str]) -> writing.Schema:
    cuts = _time_cuts(log["time_ms"].to_numpy())
    if not 0 < cuts[0] < cuts[1]:
        raise DataError("time_ms: too few different times to split by time; give a log with more than one page")
    train = log.slice(0, cuts[0])
    vocabularies = {
        "user_id": writing.vocabulary(train["user_id"]),
        "video_id": writing.vocabulary(train["video_id"], min_video_rows),
    }
    table = _columns(log, vocabularies, history, cuts[0])
    bounds = [0, *cuts, table.num_rows]
    splits = {s: table.slice(a, b - a) for s, a, b in zip(writing.SPLITS, bounds[:-1], bounds[1:], strict=True)}
    writing.prepare_folder(out)
    for split, rows in splits.items():
        writing.write_split(out, split, rows)

    labels = {name: writing.binary_label(splits, name) for name in LABELS}
    known = {split: rows.num_rows - rows["watch_ratio"].null_count for split, rows in splits.items()}
    labels["watch_ratio"] = {"kind": "regression", "known": known, "max": MAX_WATCH_RATIO}
    videos = len(vocabularies["video_id"]) + 1
    schema: writing.Schema = {
        "dataset": "kuairand",
        "citation": "Gao et al., KuaiRand, CIKM 2022, doi:10.1145/3511808.3557624",
        "license": "CC BY-SA 4.0",
        "source": {"files": sources, "rows": log.num_rows},
        "split": {"kind": "time", "fractions": list(FRACTIONS), "first_time_ms": _first_times(splits)},
        "rows": writing.row_counts(splits),
        "keys": ["raw_user_id", "raw_video_id", "time_ms"],
        "dense": writing.dense_statistics(
            splits["train"], ["duration_ms", "duration_known", "past_impressions", "past_click_rate"]
        ),
        "sparse": {
            "user_id": {"rows": len(vocabularies["user_id"]) + 1},
            "video_id": {"rows": videos},
            "hour": {"rows": 24},
            "weekday": {"rows": 7},
        },
        "lists": {"recent_videos": {"rows": videos, "max_length": history, "table": "video_id"}},
        "labels": labels,
        "undecidable": writing.undecidable(labels),
        "edges": [
            {"parent": "click", "child": child, "changed": _changed(splits, child)} for child in CHILDREN_OF_CLICK
        ],
        "unseen_in_train": {s: _unseen(rows) for s, rows in splits.items() if s != "train"},
    }
    ids = {name: [None, *values.to_pylist()] for name, values in vocabularies.items()}
    writing.write_json(out / "vocabularies.json", ids)
    writing.write_json(out / "schema.json", schema)
    return schema


def _columns(log: pa.Table, vocabularies: dict[str, pa.Array], history: int, train_rows: int) -> pa.Table:
    """Keys, inputs and labels of `log`, which is in the order of time."""
    user, video = (writing.encode(log[name], vocabularies[name]) for name in ("user_id", "video_id"))
    duration, played = log["duration_ms"].to_numpy(), log["play_time_ms"].to_numpy()
    known = duration > 0
    ratio = np.minimum(played / np.where(known, duration, 1), MAX_WATCH_RATIO).astype(np.float32)
    clicked = log[LABELS["click"]].to_numpy().astype(bool)
    past = _Past(log["user_id"].to_numpy(), log["time_ms"].to_numpy())
    seen, clicks = past.count(np.ones(len(clicked), bool)), past.count(clicked)
    click_rate = clicked[:train_rows].mean()
    # Id 0 stands for many videos and says nothing in a history: it is left out there.
    video_ids = video.to_numpy()
    data: dict[str, pa.Array | pa.ChunkedArray | np.ndarray] = {
        "raw_user_id": log["user_id"],
        "raw_video_id": log["video_id"],
        "time_ms": log["time_ms"],
        "duration_ms": duration.astype(np.float32),
        "duration_known": known.astype(np.float32),
        "past_impressions": seen.astype(np.float32),
        "past_click_rate": ((clicks + PRIOR_IMPRESSIONS * click_rate) / (seen + PRIOR_IMPRESSIONS)).astype(np.float32),
        "user_id": user,
        "video_id": video,
        "hour": log["hourmin"].to_numpy() // 100,
        "weekday": _weekday(log["date"].to_numpy()),
        "recent_videos": past.last(clicked & (video_ids > 0), video_ids, history),
        "watch_ratio": pa.array(ratio, mask=~known),
    }
    data |= {name: log[column].cast(pa.int8()) for name, column in LABELS.items()}
    return pa.table(data)


class _Past:
    """What happened to the same user strictly before each row's time, by binary search instead of a loop over rows.

    Rows become one sorted key, (user, time) as an integer, so "this user before this time" is a slice of the key.
    """

    def __init__(self, user: np.ndarray, time_ms: np.ndarray) -> None:
        _, index = np.unique(user, return_inverse=True)
        time = time_ms - time_ms.min()
        self.first = index.astype(np.int64) * (time.max() + 1)  # the smallest key of the row's user
        self.key = self.first + time
        self.order = np.argsort(self.key, kind="stable")

    def _slices(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chosen rows in the order of the key, and each row's slice [start, end) of them."""
        rows = self.order[chosen[self.order]]
        keys = self.key[rows]
        return rows, np.searchsorted(keys, self.first, side="left"), np.searchsorted(keys, self.key, side="left")

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """How many chosen rows each row has in its past."""
        _, start, end = self._slices(chosen)
        return end - start

    def last(self, chosen: np.ndarray, values: np.ndarray, length: int) -> pa.ListArray | pa.LargeListArray:
        """The values of the last `length` chosen rows in each row's past, the most recent one last."""
        rows, start, end = self._slices(chosen)
        start = np.maximum(start, end - length)
        lengths = end - start
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], lengths)
        if offsets[-1] < 2**31:
            return pa.ListArray.from_arrays(offsets.astype(np.int32), values[rows][positions])
        return pa.LargeListArray.from_arrays(offsets, values[rows][positions])


def _time_cuts(time_ms: np.ndarray) -> list[int]:
    """First rows of valid and of test; rows of one millisecond stay in one split."""
    cuts = [round(len(time_ms) * share) for share in (FRACTIONS[0], FRACTIONS[0] + FRACTIONS[1])]
    return [int(np.searchsorted(time_ms, time_ms[cut], side="left")) for cut in cuts]


def _weekday(date: np.ndarray) -> np.ndarray:
    """Monday 0 to Sunday 6 of dates written as the number 20220408 (the publisher's, Chinese local time)."""
    days = np.array([f"{d // 10000:04}-{d // 100 % 100:02}-{d % 100:02}" for d in np.unique(date)], "datetime64[D]")
    weekdays = (days.astype(np.int64) + 3) % 7  # day 0, 1970-01-01, was a Thursday
    return weekdays[np.searchsorted(np.unique(date), date)]


def _changed(splits: dict[str, pa.Table], child: str) -> dict[str, int]:
    """Rows per split where `child` is 1 and click is 0."""
    return {s: int(np.sum((t[child].to_numpy() == 1) & (t["click"].to_numpy() == 0))) for s, t in splits.items()}


def _unseen(rows: pa.Table) -> dict[str, int]:
    return {name: int(pc.sum(pc.equal(rows[name], 0)).as_py() or 0) for name in ("user_id", "video_id")}


def _first_times(splits: dict[str, pa.Table]) -> dict[str, str]:
    firsts = {split: rows["time_ms"][0].as_py() for split, rows in splits.items() if rows.num_rows}
    return {s: datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds") for s, ms in firsts.items()}


def _find(source: Path | None) -> list[Path]:
    if source is None:
        raise DataError(
            f"source: KuaiRand is not downloaded here; get an archive from {PAGE}, unpack it and name it with --source"
        )
    source = Path(source)
    if source.is_file():
        return [source]
    found = sorted(path for end in ("tsv", "tsv.gz", "csv", "csv.gz") for path in source.glob(f"*.{end}"))
    if not found:
        raise DataError(f"source: no .tsv, .tsv.gz, .csv or .csv.gz at {source}; KuaiRand is at {PAGE}")
    return found


def _read(path: Path) -> pa.Table:
    """The columns we need as int64; `is_like` is renamed to `label` where the log has no `label`."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            header = file.readline().rstrip("\r\n")
        delimiter = "\t" if "\t" in header else ","
        names = header.split(delimiter)
        like = "label" if "label" in names else "is_like"
        wanted = [*OTHER_COLUMNS, *[like if c == "label" else c for c in LABELS.values()]]
        absent = [name for name in wanted if name not in names]
        if absent:
            raise DataError(
                f"{path.name}: no column {absent[0]!r} in its first line; give a log of KuaiRand's, with header"
            )
        table = pa_csv.read_csv(
            path,
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(
                include_columns=wanted, column_types={name: pa.int64() for name in wanted}, null_values=[]
            ),
        )
    except (pa.ArrowInvalid, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        message = one_line(error)
        raise DataError(f"{path.name}: cannot be read as a log of KuaiRand's ({message})") from error
    table = table.rename_columns([*OTHER_COLUMNS, *LABELS.values()])
    clock = table["hourmin"].to_numpy()
    wrong = np.flatnonzero((clock < 0) | (clock >= 2400))
    if len(wrong):
        raise DataError(f"{path.name}: row {wrong[0] + 2}, hourmin: {clock[wrong[0]]} is no time of day; drop the row")
    for label, column in LABELS.items():
        values = table[column].to_numpy()
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if len(wrong):
            raise DataError(
                f"{path.name}: row {wrong[0] + 2}, {label}: {values[wrong[0]]} is neither 0 nor 1; drop the row"
            )
    return table
