"""Parquet in, Parquet out: the input's key columns, and one column per task behind them, in the input's row order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.data.collate import rows_of
from mtlrec.data.features.columns import Columns
from mtlrec.data.loader import Loader
from mtlrec.data.sources.arrow_types import common_schema
from mtlrec.data.sources.dataset import Dataset, list_row_groups, read_schema
from mtlrec.data.sources.files import split_root, store_of
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.errors import DataError
from mtlrec.evaluation.calibration import Calibration
from mtlrec.evaluation.evaluate import check_finite
from mtlrec.evaluation.fused_score import COLUMN as FUSED
from mtlrec.evaluation.fused_score import FusedScore
from mtlrec.heads import HeadOutput
from mtlrec.losses import TaskLosses
from mtlrec.metrics.binary import logit_of
from mtlrec.models.build import build_task_losses
from mtlrec.models.multitask import MultiTaskModel
from mtlrec.training.loading import log_skipped_rows
from mtlrec.training.progress import watched
from mtlrec.training.sharded import ShardedModel, autocast

ROW_GROUP_ROWS = 131_072


@torch.no_grad()
def predict(
    model: ShardedModel,
    job: JobConfig,
    source: str,
    output: Path,
    ranks: Ranks,
    calibration: Calibration | None = None,
    score: FusedScore | None = None,
) -> int:
    """Writes `pred_TASK` per task: p(task) over all impressions, a regression's value, a watch time in its label's
    unit; and `fused_score`, where one is given. Returns all ranks' rows. With a calibration probabilities are as it
    maps them.

    `source` is a file, a folder of Parquet files, a glob or a URI of such. One rank writes the file `output`; several
    write `output/part-RANK.parquet`, whose order is the input's. Labels are not needed. Collective.
    """
    columns = Columns.of(job, with_labels=False)
    dataset = on_first_rank(ranks, lambda: row_groups_of(source, output, columns, job, ranks.world_size))
    kinds = score_kinds(job, score is not None)
    names = list(kinds)
    schema = output_schema(dataset, job, kinds)
    kept = [field for field in schema if field.name not in names]
    loader = Loader(
        job.data,
        dataset,
        columns,
        ranks.rank,
        ranks.world_size,
        keep=[field.name for field in kept],
        expected_fingerprints=model.id_fingerprints,
    )
    network, losses = model.network, build_task_losses(job)
    network.eval()
    rows = torch.zeros(1, dtype=torch.int64, device=ranks.device)
    path = output if ranks.world_size == 1 else output / f"part-{ranks.rank:05d}.parquet"
    with written(path, schema) as write:
        for cuts, size in watched(loader.cuts(), loader.steps_per_epoch, "predict", ranks.is_first):
            batch = loader.batch(cuts, size)
            values = _scores(network, batch.to(ranks.device), job, losses, calibration, score).cpu()
            table = rows_of(cuts)
            scored = pa.table([column_of(table, field) for field in kept], schema=pa.schema(kept))
            left_out = (batch.row_mask == 0).numpy()[: table.num_rows]
            for index, name in enumerate(names):
                scores = pa.array(values[: table.num_rows, index].numpy(), mask=left_out)
                scored = scored.append_column(name, scores)
            write(scored.cast(schema))
            rows += scored.num_rows
            ranks.liveness.tick()
    dist.all_reduce(rows)
    log_skipped_rows(loader, ranks)
    return int(rows.item())


def _scores(
    network: MultiTaskModel,
    batch: Batch,
    job: JobConfig,
    losses: TaskLosses,
    calibration: Calibration | None,
    score: FusedScore | None,
) -> Tensor:
    """[B, T], and with a fused score [B, T + 1], then float64."""
    with autocast(job, batch.dense.device):
        outputs = network(batch.dense, batch.sparse)
    check_finite(losses.predictions(outputs), job, batch.origin)
    values = calibrated(outputs, job, losses, calibration)
    return values if score is None else torch.cat([values, score.of(outputs, job, losses)[:, None]], dim=1)


def calibrated(outputs: HeadOutput, job: JobConfig, losses: TaskLosses, calibration: Calibration | None) -> Tensor:
    """[B, T]: the predictions, probabilities as the calibration maps them where there is one."""
    values = losses.predictions(outputs)
    if calibration is None:
        return values
    columns = []
    for slot, (task, loss) in enumerate(zip(job.tasks, losses, strict=True)):
        log_p, log_not_p = logit_of(outputs.log_entire_p[:, slot])
        columns.append(calibration.of(task.name)(log_p - log_not_p) if loss.is_probability else values[:, slot])
    return torch.stack(columns, dim=1)


def row_groups_of(source: str, output: Path, columns: Columns, job: JobConfig, ranks: int) -> Dataset:
    """The input's, once it is clear that the output does not lie on top of it."""
    root, pattern = split_root(source)
    given = Path(source)
    if output.is_dir() if ranks == 1 else output.is_file():
        raise DataError(f"{output}: name {'the file to write' if ranks == 1 else 'a folder of parts'}")
    if output.resolve() == given.resolve() or (given.is_dir() and given.resolve() in output.resolve().parents):
        raise DataError(f"{output}: lies in the input {source}; write the scores elsewhere")
    if ranks > 1 and any(output.glob("part-*.parquet")):
        raise DataError(f"{output}: already holds parts, perhaps of more ranks; remove them or name another folder")
    column_uses = columns.column_uses
    for key in job.data.keys:
        column_uses.setdefault(key, [])
    dataset = list_row_groups(root, [pattern], column_uses, job.data.on_error, job.data.retries)
    if store_of(root).is_local and output.resolve() in [Path(file.key).resolve() for file in dataset.files]:
        raise DataError(f"{output}: is one of the input's files; write the scores elsewhere")
    return dataset


def column_of(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """Nulls where the files of these rows lack it."""
    there = field.name in table.column_names
    return table[field.name].cast(field.type) if there else pa.chunked_array([pa.nulls(len(table), field.type)])


def output_schema(dataset: Dataset, job: JobConfig, kinds: Mapping[str, pa.DataType]) -> pa.Schema:
    """data.keys, or every column of the input, then the tasks' columns; wide enough for every file."""
    first = dataset.files[0].name
    schema = common_schema([read_schema(dataset, file) for file in dataset.files])
    kept = [schema.field(name).with_nullable(True) for name in job.data.keys or schema.names]
    taken = [field.name for field in kept if field.name in kinds]
    if taken:
        raise DataError(f"{first}: already has {', '.join(taken)}; name the columns to keep in data.keys")
    return pa.schema([*kept, *(pa.field(name, kind) for name, kind in kinds.items())])


def score_kinds(job: JobConfig, fused: bool) -> dict[str, pa.DataType]:
    """The columns that scores become."""
    return {f"pred_{task.name}": pa.float32() for task in job.tasks} | ({FUSED: pa.float64()} if fused else {})


@contextmanager
def written(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Collective. What takes the rows; they wait until they fill a row group. The file has its name only when those of
    all ranks are whole."""
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    waiting: list[pa.Table] = []

    def flush(writer: pq.ParquetWriter) -> None:
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)
            waiting.clear()

    try:
        with pq.ParquetWriter(part, schema) as writer:

            def write(rows: pa.Table) -> None:
                waiting.append(rows)
                if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
                    flush(writer)

            yield write
            flush(writer)
        if dist.is_initialized():
            dist.barrier()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
