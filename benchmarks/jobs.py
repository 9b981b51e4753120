"""The data and the jobs that `train.py`, `peers.py` and `scale.py` measure: 26 tables as in Criteo, several tasks.

Files have 26 id columns, 13 floats and 8 binary labels; a job takes the first labels. Ids are drawn with density
proportional to id^(-2/3), so that few of them make most rows, as in logs. Every label is drawn from a logistic model of
its own over the ids (by their remainder by 4096, so that tables of any size are as hard) and the floats, so that what
has learned something shows an AUC.

Shapes: N rows.
"""

import inspect
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlrec import layers
from mtlrec.config import JobConfig
from mtlrec.config.file import load_config

TABLES, DENSE, TASKS = 26, 13, 8
EFFECTS = 4096
TABLE_NAMES = [f"c{index}" for index in range(TABLES)]
DENSE_NAMES = [f"d{index}" for index in range(DENSE)]
SIZES = {"num_experts": 6, "num_task_experts": 2, "num_shared_experts": 2}
FUSIONS: dict[str, dict[str, Any]] = {
    kind: {name: size for name, size in SIZES.items() if name in inspect.signature(fusion).parameters}
    for kind, fusion in layers.FUSIONS.items()
}


def recipe(name: str, overrides: Sequence[str] = ()) -> JobConfig:
    """A recipe by its name, or with another fusion layer, as in feed/mmoe."""
    name, _, kind = name.partition("/")
    return load_config(name, [*([f"model.fusion.kind={kind}"] if kind else []), *overrides])


def write_files(
    parent: Path, table_rows: Sequence[int], train_rows: int, test_rows: int, row_group: int = 65_536
) -> Path:
    """The folder below `parent` with train.parquet and test.parquet of these sizes; made where it is not there yet."""
    sizes = zlib.crc32(repr(list(table_rows)).encode())
    root = parent / f"{train_rows}_{test_rows}_{sizes:08x}"
    if root.exists():
        return root
    part = root.with_name(f"{root.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    effects = np.random.default_rng(0).normal(0, 0.35, (TASKS, TABLES + DENSE, EFFECTS)).astype(np.float32)
    for split, rows in (("train", train_rows), ("test", test_rows)):
        with pq.ParquetWriter(part / f"{split}.parquet", _chunk(table_rows, effects, 1, 0).schema) as writer:
            for start in range(0, rows, row_group):
                seed = start if split == "train" else start + train_rows
                writer.write_table(_chunk(table_rows, effects, min(row_group, rows - start), seed))
    part.rename(root)
    return root


def _chunk(table_rows: Sequence[int], effects: np.ndarray, rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng([1, seed])
    ids = [(size * rng.random(rows) ** 3).astype(np.int64) for size in table_rows]
    dense = [rng.normal(size=rows).astype(np.float32) for _ in range(DENSE)]
    logits = np.full((TASKS, rows), -1.0, np.float32)
    for index, column in enumerate(ids):
        logits += effects[:, index, column % EFFECTS]
    for index, values in enumerate(dense):
        logits += effects[:, TABLES + index, :1] * values
    labels = rng.random((TASKS, rows)) < 1 / (1 + np.exp(-logits))
    columns: dict[str, Any] = dict(zip(TABLE_NAMES, ids, strict=True)) | dict(zip(DENSE_NAMES, dense, strict=True))
    return pa.table(columns | {f"y{task}": labels[task].astype(np.int8) for task in range(TASKS)})


def job(
    root: Path,
    table_rows: Sequence[int],
    fusion: str = "ple",
    tasks: int = 2,
    batch_size: int = 4096,
    expert_hidden: Sequence[Sequence[int]] = ((256, 128),),
    dim: int = 16,
    **train: Any,
) -> JobConfig:
    """Experts [256, 128], towers [64], row-wise Adagrad and Adam; `train` goes into its section."""
    return JobConfig.model_validate(
        {
            "name": f"criteo_like_{fusion}",
            "data": {
                "root": str(root),
                "train": ["train.parquet"],
                "valid": [],
                "test": ["test.parquet"],
                "batch_size": batch_size,
            },
            "tables": {name: {"rows": size, "dim": dim} for name, size in zip(TABLE_NAMES, table_rows, strict=True)},
            "features": {
                "dense": [{"name": name} for name in DENSE_NAMES],
                "sparse": [{"name": name, "table": name} for name in TABLE_NAMES],
            },
            "tasks": [{"name": f"y{task}", "label": f"y{task}"} for task in range(tasks)],
            "model": {
                "bottom": {"kind": "concat"},
                "fusion": {"kind": fusion, "expert_hidden": [list(widths) for widths in expert_hidden]}
                | FUSIONS[fusion],
                "heads": {"kind": "independent", "tower_hidden": [64]},
            },
            "train": train,
        }
    )
