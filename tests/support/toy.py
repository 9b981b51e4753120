"""A small job with every kind of column, and Parquet for it: what tests train on."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec import layers
from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.data.collate import collate
from mtlrec.data.features.columns import Columns
from mtlrec.data.loader import Loader
from mtlrec.data.order import Piece
from mtlrec.data.sources.dataset import RowGroup, list_row_groups
from mtlrec.data.sources.files import File
from mtlrec.data.sources.parquet import WindowTable

USERS, ITEMS = 50, 40

# A row for each kind, named after it, and rows for the options that all or the gated ones take.
FUSIONS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind, "expert_hidden": [[16], [8]]} for kind in layers.FUSIONS},
    "single_task": {"kind": "single_task", "expert_hidden": [[16, 8]]},
    "customized_weight": {"kind": "customized", "expert_hidden": [[16], [8]], "merge": "weight"},
    "mmoe": {"kind": "mmoe", "expert_hidden": [[16], [8]], "num_experts": 3, "gate_hidden": [[4], []]},
    "ple": {"kind": "ple", "expert_hidden": [[16], [8]], "num_task_experts": [1, 2, 1, 1], "num_shared_experts": 2},
    "adatt_sp": {"kind": "adatt_sp", "expert_hidden": [[16], [8]], "num_task_experts": 2},
    "adatt": {"kind": "adatt", "expert_hidden": [[16], [8]], "num_task_experts": [1, 2, 1, 1], "num_shared_experts": 2},
    "home_groups": {
        "kind": "home",
        "expert_hidden": [[16], [8]],
        "task_groups": [0, 1, 0, 0],
        "num_group_experts": 2,
        "num_task_experts": [1, 2, 1, 1],
        "norm": "layer",
        "gate_dropout": 0.1,
    },
    "layer_norm_and_dropout": {
        "kind": "ple",
        "expert_hidden": [[16], [8]],
        "activation": "silu",
        "norm": "layer",
        "dropout": 0.1,
        "gate_dropout": 0.1,
    },
    "batch_norm": {"kind": "adatt", "expert_hidden": [[16, 16], [8]], "activation": "gelu", "norm": "batch"},
    "recompute": {"kind": "adatt_sp", "expert_hidden": [[16], [8]], "native_residual": False, "recompute": True},
    "recompute_all": {
        "kind": "mmoe",
        "expert_hidden": [[16], [8]],
        "activation": "silu",
        "norm": "layer",
        "dropout": 0.1,
        "recompute": True,
    },
}


def toy_tree(root: Path | str = ".", **sections: Any) -> dict[str, Any]:
    """The YAML tree of the job; a keyword replaces (or, for a mapping, updates) a section."""
    tree: dict[str, Any] = {
        "name": "toy",
        "data": {"root": str(root), "batch_size": 64, "shuffle_buffer": 100},
        "tables": {"user": {"rows": USERS, "dim": 8}, "item": {"rows": ITEMS, "dim": 8}},
        "features": {
            "dense": [
                {"name": "age", "transform": "standardize", "mean": 40.0, "std": 10.0},
                {"name": "price", "transform": "log1p"},
            ],
            "sparse": [
                {"name": "user_id", "table": "user"},
                {"name": "item_id", "table": "item"},
                {"name": "recent_items", "table": "item", "pooling": "mean", "max_length": 5},
            ],
        },
        "tasks": [
            {"name": "click", "label": "is_click"},
            {"name": "buy", "label": "is_buy", "given": "click"},
            {"name": "like", "label": "is_like", "space": "shown_like", "weight": 0.5},
            {"name": "ratio", "kind": "regression", "label": "watch_ratio", "space": "click"},
        ],
        "model": {
            "bottom": {"kind": "concat", "hidden": [16]},
            "fusion": FUSIONS["adatt_sp"],
            "heads": {"kind": "esmm", "tower_hidden": [8]},
        },
        "optim": {"sparse": {"lr": 0.2}, "dense": {"lr": 0.02}},
        "train": {"epochs": 2, "log_every": 1, "device": "cpu", "timeout_s": 60, "diagnose_every": 0},
    }
    for key, value in sections.items():
        tree[key] = tree[key] | value if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
    return tree


def toy_job(root: Path | str = ".", **sections: Any) -> JobConfig:
    return JobConfig.model_validate(toy_tree(root, **sections))


def toy_table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, USERS, rows), rng.integers(0, ITEMS, rows)
    affinity = np.sin(user) + np.cos(item) + 0.5 * np.sin(user * item)
    click = rng.random(rows) < 1 / (1 + np.exp(-affinity))
    buy = click & (rng.random(rows) < 0.4)
    lengths = rng.integers(0, 8, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    recent = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rng.integers(0, ITEMS, offsets[-1])))
    like = pa.array((rng.random(rows) < 0.3).astype(np.int8), mask=rng.random(rows) < 0.2)
    return pa.table(
        {
            "row": np.arange(rows) + seed * 1_000_000,
            "age": pa.array(rng.normal(40, 10, rows), mask=rng.random(rows) < 0.1),
            "price": rng.exponential(20, rows).astype(np.float32),
            "user_id": pa.array(user, mask=rng.random(rows) < 0.05),
            "item_id": item.astype(np.int32),
            "recent_items": recent,
            "is_click": click,
            "is_buy": buy.astype(np.int8),
            "is_like": like,
            "shown_like": (rng.random(rows) < 0.7).astype(np.int64),
            "watch_ratio": np.where(click, rng.gamma(2.0, 0.5, rows), 0.0),
            "watch_s": np.where(click, rng.gamma(2.0, 10.0, rows), 0.0),
            "importance": pa.array(rng.random(rows) * 2, mask=rng.random(rows) < 0.1),
            "recent_weights": pa.ListArray.from_arrays(pa.array(offsets), pa.array(rng.random(offsets[-1]))),
        }
    )


def write_toy(root: Path, train: tuple[int, ...] = (300, 257), valid: int = 150, test: int = 101) -> Path:
    """Parquet with several files and row groups of odd sizes."""
    for index, rows in enumerate(train):
        _write(toy_table(rows, index), root / "train" / f"part-{index}.parquet")
    _write(toy_table(valid, 10), root / "valid" / "part-0.parquet")
    _write(toy_table(test, 11), root / "test" / "part-0.parquet")
    return root


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=70)


def rows_of(table: pa.Table) -> WindowTable:
    """As if read from a file of one row group."""
    group = RowGroup(File("here.parquet", "here.parquet", "here.parquet", 0, None), 0, table.num_rows)
    return WindowTable(table, (group,), (Piece(0, range(table.num_rows)),), (None,))


def collated(table: pa.Table, rows: int | None = None, job: JobConfig | None = None) -> Batch:
    """The table's rows as a batch, padded to `rows`."""
    job = job or toy_job()
    block = Columns.of(job, with_groups=True).block(rows_of(table))
    return collate([(block, 0, len(block))], rows or len(block), job.features.collections)


def loader_of(job: JobConfig, rank: int = 0, world_size: int = 1, split: str = "train", **options: Any) -> Loader:
    columns = Columns.of(job)
    dataset = list_row_groups(job.data.root, getattr(job.data, split), columns.column_uses, job.data.on_error)
    return Loader(job.data, dataset, columns, rank, world_size, **options)
