"""A run whose features have every transform, and rows for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.toy import toy_table, toy_tree

CITIES = ["Aachen", "Bonn", "Zürich", "Ōsaka"]
FEATURES = {
    "dense": [
        {"name": "age", "transform": ["clip", "standardize"], "min": 0, "max": 100, "mean": 40.0, "std": 10.0},
        {"name": "price", "transform": "log1p"},
    ],
    "sparse": [
        {"name": "user_id", "table": "user"},
        {"name": "item_id", "table": "item"},
        {"name": "recent_items", "table": "item", "pooling": "mean", "max_length": 5, "weights": "recent_weights"},
        {"name": "city", "table": "city", "transform": "hash"},
        {"name": "segment", "table": "city", "transform": "vocabulary", "vocabulary": "segments.txt"},
        {
            "name": "price_bucket",
            "column": "price",
            "table": "bucket",
            "transform": "bucketize",
            "boundaries": [0.7, 20],
        },
        {"name": "session", "table": "user", "transform": "modulo"},
        {"name": "tags", "table": "city", "transform": "hash", "weights": "tags.w"},
    ],
}


def serving_table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([seed, 1])
    return (
        toy_table(rows, seed)
        .append_column("city", pa.array(rng.choice(CITIES, rows), mask=rng.random(rows) < 0.1))
        .append_column("segment", pa.array(rng.choice(["new", "old", "unheard of"], rows)))
        .append_column("session", pa.array(rng.integers(0, 2**40, rows)))
        .append_column("tags", pa.array([[{"id": tag, "w": 0.5}] for tag in rng.choice(["red", "blue"], rows)]))
    )


def write_serving_job(folder: Path, **sections: Any) -> Path:
    """The YAML, beside its data."""
    for split, rows in (("train", 557), ("valid", 150), ("test", 101)):
        (folder / "data" / split).mkdir(parents=True)
        pq.write_table(serving_table(rows, len(split)), folder / "data" / split / "part.parquet", row_group_size=70)
    (folder / "data" / "segments.txt").write_text("new\nold\n")
    tree = toy_tree(folder / "data", features=FEATURES, **sections)
    tree["tasks"].append({"name": "seconds", "kind": "watch_time", "label": "watch_s", "space": "click"})
    tree["tables"] |= {"city": {"rows": 30, "dim": 12}, "bucket": {"rows": 3, "dim": 4}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
