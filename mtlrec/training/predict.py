"""Parquet in, Parquet out: the input's key columns, and one column per task behind them, in the input's row order."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from mtlrec.config import JobConfig
from mtlrec.data.collate import Collator
from mtlrec.data.parquet import DataError, list_row_groups, read_batches
from mtlrec.distributed.process_group import Ranks


@torch.no_grad()
def predict(model: DistributedModelParallel, job: JobConfig, source: Path, output: Path, ranks: Ranks) -> int:
    """Writes `pred_TASK` per task: p(task) over all impressions, or a regression's value. Returns the rank's rows.

    `source` is a file or a folder of Parquet files. One rank writes the file `output`; several write
    `output/part-RANK.parquet`, whose order is the input's. Labels are not needed. Collective.
    """
    collate = Collator.of(job, with_labels=False)
    root, patterns = (source, ["**/*.parquet"]) if source.is_dir() else (source.parent, [source.name])
    groups = list_row_groups(root, patterns, [*collate.columns, *job.data.keys])
    names = [f"pred_{task.name}" for task in job.tasks]
    taken = set(pq.read_schema(groups[0].path).names) & set(names)
    if taken and not job.data.keys:
        raise DataError(
            f"{groups[0].path}: already has {', '.join(sorted(taken))}; name the columns to keep in data.keys"
        )
    path = output if ranks.world_size == 1 else output / f"part-{ranks.rank:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    is_binary = torch.tensor([task.kind == "binary" for task in job.tasks], device=ranks.device)
    network = model.module.model if hasattr(model.module, "model") else model.module
    network.eval()
    writer: pq.ParquetWriter | None = None
    rows = 0
    try:
        for part in read_batches(groups, None, job.data.batch_size, ranks.rank, ranks.world_size):
            batch = collate(part).to(ranks.device)
            values = network(batch.dense, batch.sparse).predictions(is_binary)[: part.table.num_rows].cpu()
            kept = part.table.select(job.data.keys) if job.data.keys else part.table
            for index, name in enumerate(names):
                kept = kept.append_column(name, pa.array(values[:, index].numpy()))
            writer = writer or pq.ParquetWriter(path, kept.schema)
            writer.write_table(kept)
            rows += kept.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows
