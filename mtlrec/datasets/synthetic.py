"""A synthetic short-video feed with known truth: as many rows as asked for, streamed to disk in constant memory.

Every impression may be clicked, a clicked video viewed long, a long view liked and shared (siblings); a child label is
1 only where its parent is. Beside the labels stand the true marginal probabilities they were drawn from, so a test can
compare a model with the Bayes classifier instead of with another model. What is planted is in `planted.py`.

    keys     row_id, time_ms
    sparse   user_id, item_id, category, user_segment, device, hour    ids from 0
    lists    recent_items: the last items this user clicked before this row, oldest first
    dense    duration_s, user_age_days, hours_since_visit, session_depth
    labels   click, long_view, like, share (int8), watch_time (float32 seconds, 0 without a click)
    truth    true_click, true_long_view, true_like, true_share (p over impressions); true_watch_time = E[watch_time | x]

Rows are in the order of time and cover two weeks whatever their number; the first 80 % are train, the last 10 % test.
They are drawn in chunks of fixed size, each from a generator of its own, and a user's history is carried from one
chunk to the next: the rows depend on (rows, users, items, seed, correlation, history, rates) and not on the
files they go to.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mtlrec.datasets import planted, writing
from mtlrec.datasets.planted import TASKS, World
from mtlrec.errors import ConfigError

CHUNK_ROWS = 131_072
ROW_GROUP_ROWS = 32_768
FIRST_TIME_MS = 1_735_689_600_000  # 2025-01-01T00:00Z
DENSE = ["duration_s", "user_age_days", "hours_since_visit", "session_depth"]
# Bins of a probability for the Bayes AUC: so narrow that counting the pairs within one as ties is exact enough.
BINS = 65_536


def feed(
    out: Path,
    rows: int,
    users: int = 5_000,
    items: int = 2_000,
    seed: int = 0,
    correlation: float = 0.5,
    rows_per_file: int = 500_000,
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1),
    history: int = 20,
    rates: Mapping[str, float] | None = None,
) -> writing.Schema:
    """Write the feed to `out/{train,valid,test}/part-N.parquet`; returns the content of its schema.json.

    Args:
        out: the folder to write to.
        rows: impressions in all.
        users, items: how many there are; more of them with the same rows are harder to learn.
        seed: of everything.
        correlation: in [-1, 1], of the planted logit of p(child | parent) with its parent's. Tasks further apart
            correlate by its powers: click and like by its square.
        rows_per_file: the most rows a Parquet file gets.
        splits: shares of train, valid and test; they sum to 1.
        history: the most items in recent_items.
        rates: task -> the mean of p(task) over impressions to plant; `{"share": 0.005}` makes shares rare.

    Raises:
        ConfigError: an argument out of its range, by name; or `out` holds Parquet files of someone else's.
    """
    _check(rows, users, items, seed, correlation, rows_per_file, splits, history)
    unknown = sorted(set(rates or {}) - set(TASKS))
    if unknown:
        raise ConfigError(f"rates: {unknown[0]} is no task of the feed; tasks are {', '.join(TASKS)}")
    world = World(users, items, seed, correlation, rates)
    writing.prepare_folder(out)
    ends = [round(rows * splits[0]), round(rows * (splits[0] + splits[1])), rows]
    tally = _Tally()
    writers = {split: writing.PartWriter(out / split, rows_per_file, ROW_GROUP_ROWS) for split in writing.SPLITS}
    try:
        for start, table in _chunks(world, rows, seed, history):
            for split, begin, end in zip(writing.SPLITS, [0, *ends[:-1]], ends, strict=True):
                first, last = max(begin - start, 0), min(end - start, table.num_rows)
                if first < last:
                    part = table.slice(first, last - first)
                    writers[split].write(part)
                    tally.add(split, part)
    finally:
        for writer in writers.values():
            writer.close()
    settings: dict[str, int | float] = {"rows": rows, "users": users, "items": items, "seed": seed}
    settings |= {"correlation": correlation, "history": history}
    settings |= {f"rate_{task}": rate for task, rate in (rates or {}).items()}
    schema = _schema(world, tally, settings, splits)
    writing.write_json(out / "schema.json", schema)
    return schema


def _chunks(world: World, rows: int, seed: int, history: int) -> Iterator[tuple[int, pa.Table]]:
    """(index of its first row, table) of each chunk in the order of time."""
    recent = _first_histories(world, np.random.default_rng([seed, 1]), history)
    for index, start in enumerate(range(0, rows, CHUNK_ROWS)):
        rng = np.random.default_rng([seed, 2, index])
        row_id = np.arange(start, min(start + CHUNK_ROWS, rows), dtype=np.int64)
        time_s = row_id * (planted.SPAN_S / rows)
        shown = world.impressions(rng, time_s)
        truth, labels = world.outcomes(rng, shown)
        recent_items, recent = _histories(shown.user, shown.item, labels["click"] == 1, recent)
        yield (
            start,
            pa.table(
                {
                    "row_id": row_id,
                    "time_ms": FIRST_TIME_MS + (time_s * 1000).astype(np.int64),
                    "user_id": shown.user,
                    "item_id": shown.item,
                    "category": world.category[shown.item],
                    "user_segment": world.segment[shown.user],
                    "device": world.device[shown.user],
                    "hour": shown.hour,
                    "recent_items": recent_items,
                    "duration_s": world.duration_s[shown.item],
                    "user_age_days": world.user_age_days[shown.user],
                    "hours_since_visit": shown.hours_since_visit,
                    "session_depth": shown.session_depth,
                    **labels,
                    **truth,
                }
            ),
        )


def _first_histories(world: World, rng: np.random.Generator, history: int) -> np.ndarray:
    """What users clicked before the first row: int64 [users, history], oldest first, -1 before the first click."""
    user = np.repeat(np.arange(world.users), history)
    recent = world.shown_items(rng, user).reshape(world.users, history)
    empty = rng.integers(history + 1, size=(world.users, 1))
    recent[np.arange(history) < empty] = -1
    return recent


def _histories(
    user: np.ndarray, item: np.ndarray, clicked: np.ndarray, recent: np.ndarray
) -> tuple[pa.ListArray, np.ndarray]:
    """Each row's last clicked items before it, and `recent` [users, history] after the chunk.

    Per user of the chunk, their `history` carried items and then their clicks of the chunk are laid out side by side
    in one array; a row's history is the window that ends before its own click.
    """
    history = recent.shape[1]
    order = np.argsort(user, kind="stable")
    present, first, group = np.unique(user[order], return_index=True, return_inverse=True)
    clicks = clicked[order].astype(np.int64)
    before = np.cumsum(clicks) - clicks  # clicks of the chunk in sorted rows before this one, all users
    user_start = before[first] + history * np.arange(len(present))
    totals = np.add.reduceat(clicks, first)
    line = np.empty(history * len(present) + int(clicks.sum()), np.int64)
    line[user_start[:, None] + np.arange(history)] = recent[present]
    start = before + history * group  # of the row's window
    chosen = clicks == 1
    line[start[chosen] + history] = item[order][chosen]

    after = recent.copy()
    after[present] = line[(user_start + totals)[:, None] + np.arange(history)]
    windows = np.empty((len(user), history), np.int64)
    windows[order] = line[start[:, None] + np.arange(history)]
    known = windows >= 0
    offsets = np.concatenate([[0], np.cumsum(known.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, windows[known]), after


class _Tally:
    """What schema.json says of the rows, counted while they pass."""

    def __init__(self) -> None:
        self.rows = dict.fromkeys(writing.SPLITS, 0)
        self.positives = {task: dict.fromkeys(writing.SPLITS, 0) for task in TASKS}
        self.watched_s = dict.fromkeys(writing.SPLITS, 0.0)
        self.moments = {name: [0.0, 0.0, np.inf, -np.inf] for name in DENSE}
        self.histogram = {task: np.zeros((2, BINS)) for task in TASKS}

    def add(self, split: str, table: pa.Table) -> None:
        self.rows[split] += table.num_rows
        self.watched_s[split] += float(table["watch_time"].to_numpy().astype(np.float64).sum())
        for task in TASKS:
            label = table[task].to_numpy().astype(np.int64)
            self.positives[task][split] += int(label.sum())
            if split == "test":
                bins = np.minimum((table[f"true_{task}"].to_numpy() * BINS).astype(np.int64), BINS - 1)
                self.histogram[task] += np.bincount(bins + label * BINS, minlength=2 * BINS).reshape(2, BINS)
        if split == "train":
            for name, m in self.moments.items():
                x = table[name].to_numpy().astype(np.float64)
                m[0], m[1], m[2], m[3] = m[0] + x.sum(), m[1] + (x * x).sum(), min(m[2], x.min()), max(m[3], x.max())

    def dense(self) -> dict[str, dict[str, float]]:
        n, found = max(self.rows["train"], 1), {}
        for name, (total, squares, low, high) in self.moments.items():
            mean = total / n
            found[name] = {"mean": mean, "std": max(squares / n - mean * mean, 0.0) ** 0.5, "min": low, "max": high}
        return {name: {key: float(value) for key, value in entry.items()} for name, entry in found.items()}

    def bayes_auc(self, task: str) -> float | None:
        """AUC of the true probability against the drawn label over the test rows; None where one class is absent."""
        negatives, positives = self.histogram[task]
        pairs = negatives.sum() * positives.sum()
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + 0.5 * negatives)).sum() / pairs) if pairs else None


def _schema(world: World, tally: _Tally, settings: dict[str, int | float], splits: tuple[float, ...]) -> writing.Schema:
    labels: dict[str, dict] = {task: {"kind": "binary", "positives": tally.positives[task]} for task in TASKS}
    undecidable = writing.undecidable(labels)
    means = {split: tally.watched_s[split] / max(rows, 1) for split, rows in tally.rows.items()}
    labels["watch_time"] = {"kind": "watch_time", "unit": "s", "mean": means}
    sizes = {
        "user_id": world.users,
        "item_id": world.items,
        "category": planted.CATEGORIES,
        "user_segment": planted.SEGMENTS,
        "device": planted.DEVICES,
        "hour": planted.HOURS,
    }
    return {
        "dataset": "synthetic_feed",
        "source": settings,
        "split": {"kind": "time", "fractions": list(splits)},
        "rows": {"total": sum(tally.rows.values()), **tally.rows},
        "keys": ["row_id", "time_ms"],
        "dense": tally.dense(),
        "sparse": {name: {"rows": size} for name, size in sizes.items()},
        "lists": {"recent_items": {"rows": world.items, "max_length": settings["history"], "table": "item_id"}},
        "labels": labels,
        "undecidable": undecidable,
        "edges": [{"parent": planted.PARENT[task], "child": task} for task in TASKS if task in planted.PARENT],
        "truth": {name: f"true_{name}" for name in planted.SCORES},
        "bayes_auc": {task: tally.bayes_auc(task) for task in TASKS},
    }


def _check(
    rows: int,
    users: int,
    items: int,
    seed: int,
    correlation: float,
    rows_per_file: int,
    splits: tuple[float, float, float],
    history: int,
) -> None:
    least = {"rows": (rows, 10), "users": (users, 1), "items": (items, planted.CATEGORIES)}
    least |= {"seed": (seed, 0), "rows_per_file": (rows_per_file, 1), "history": (history, 1)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ConfigError(f"{name}: {value} is too small; give {smallest} or more")
    if not -1.0 <= correlation <= 1.0:
        raise ConfigError(f"correlation: {correlation} is outside [-1, 1]; 0.5 is the default")
    if len(splits) != 3 or not min(splits) >= 0 or not abs(sum(splits) - 1) <= 1e-6 or splits[0] * rows < 1:
        raise ConfigError(
            f"splits: {splits} are not three shares that sum to 1, with rows to train; give e.g. (0.8, 0.1, 0.1)"
        )
