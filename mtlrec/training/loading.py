"""A split's loader: one rank lists the files, all take the same rows from what it found."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist

from mtlrec.config import JobConfig
from mtlrec.data.features.columns import Columns
from mtlrec.data.loader import Loader
from mtlrec.data.sources.dataset import ColumnUse, list_row_groups
from mtlrec.distributed.process_group import Ranks, on_first_rank
from mtlrec.errors import ConfigError

logger = logging.getLogger(__name__)


def loader_of(
    job: JobConfig,
    split: str,
    ranks: Ranks,
    training: bool = False,
    expected_fingerprints: Mapping[str, str] | None = None,
    keep: Mapping[str, list[ColumnUse]] | None = None,
) -> Loader:
    """The rank's rows of train, valid or test: shuffled for training, else in the files' order. Collective.

    `keep` are columns that blocks have as Arrow too, and what reads them.

    Raises DataError where files are missing or broken, or their ids are others than those of `expected_fingerprints`.
    """
    data, patterns = job.data, getattr(job.data, split)
    if not patterns:
        raise ConfigError(f"data.{split} is empty; there is nothing to evaluate")
    columns = on_first_rank(ranks, lambda: Columns.of(job, with_groups=not training))
    column_uses = columns.column_uses
    for column, of in (keep or {}).items():
        column_uses[column] = [*column_uses.get(column, []), *of]
    dataset = on_first_rank(
        ranks, lambda: list_row_groups(data.root, patterns, column_uses, data.on_error, data.retries)
    )
    return Loader(
        data,
        dataset,
        columns,
        ranks.rank,
        ranks.world_size,
        shuffle=data.shuffle if training else "none",
        seed=job.train.seed,
        pin_memory=ranks.device.type == "cuda",
        keep=list(keep or {}),
        expected_fingerprints=expected_fingerprints,
    )


def log_skipped_rows(loader: Loader, ranks: Ranks) -> None:
    """Collective. The rows of this epoch that data.on_error has left out, of all ranks."""
    if loader.may_skip:
        within_files = torch.tensor([loader.skipped.within_files], device=ranks.device)
        dist.all_reduce(within_files)
        skipped = int(within_files.item()) + loader.skipped.of_whole_files
        if ranks.is_first and skipped:
            files = len(loader.dataset.left_out)
            whole = f", those of {files} whole {'file' if files == 1 else 'files'} among them" if files else ""
            rows = loader.rows + loader.skipped.of_whole_files
            logger.info(f"{skipped:,} of {rows:,} rows were left out (data.on_error){whole}")
