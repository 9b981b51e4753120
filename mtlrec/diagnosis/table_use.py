"""Which rows of the tables are looked up, and how far they are from where they were drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtlrec.batch import Batch
from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.metrics.grouped_auc import rows_of_all_ranks
from mtlrec.models.sparse_arch import SparseArch, unit_weighted

HOT = 0.01
"""The share of a table's rows that are its hot ones: those looked up most."""
LOOKUPS_FOR_A_HOT_ROW = 10
SAMPLE = 256
"""Rows of each kind whose norms are taken."""


@dataclass(frozen=True)
class TableUse:
    """Of one table, by the rows that were looked at.

    Attributes:
        rows: of the table
        lookups: how many there were
        seen: how many rows they went to
        hot_share: the share of the lookups that went to the hottest hundredth of the table's rows, one at least; NaN
            where there are under ten lookups for each of these, which would be hot by chance
        drawn_norm: the mean Euclidean norm of a row as training draws it
        hot_norm, seen_norm, other_norm: its mean now, of the hot rows, of the others that were seen, and of those that
            were not; NaN where there are none. Of up to 256 each.
    """

    name: str
    rows: int
    lookups: int
    seen: int
    hot_share: float
    drawn_norm: float
    hot_norm: float
    seen_norm: float
    other_norm: float

    def growth(self, kind: Literal["hot", "seen", "other"]) -> float:
        """How many times as long as drawn such rows are."""
        norm: float = getattr(self, f"{kind}_norm")
        return norm / self.drawn_norm


Counts = tuple[np.ndarray, np.ndarray]
"""Rows of a table, each once, and how often they were looked up."""


class LookupCounts:
    """Accumulates batches' ids by table."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job
        nothing = np.empty(0, np.int64), np.empty(0, np.int64)
        self._counts: dict[str, Counts] = dict.fromkeys(job.tables, nothing)

    def add(self, batch: Batch) -> None:
        ids = batch.ids()
        for feature in self._job.features.sparse:
            values = ids[feature.name].values().cpu().numpy()
            before = self._counts[feature.table]
            self._counts[feature.table] = _added(before, np.unique(values, return_counts=True))

    def compute(self, over_ranks: bool) -> dict[str, Counts]:
        """The most often looked up first. Collective over ranks; without, this rank's own."""
        found = {}
        for table, (rows, often) in self._counts.items():
            if over_ranks:
                rows, often = _summed(*rows_of_all_ranks(rows, often))
            order = np.argsort(-often, kind="stable")
            found[table] = rows[order], often[order]
        return found


def _added(one: Counts, other: Counts) -> Counts:
    return _summed(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))


def _summed(rows: np.ndarray, often: np.ndarray) -> Counts:
    distinct, place = np.unique(rows, return_inverse=True)
    return distinct, np.bincount(place, often, minlength=len(distinct)).astype(np.int64)


def table_uses(sparse_arch: SparseArch, found: Mapping[str, Counts], job: JobConfig, ranks: Ranks) -> list[TableUse]:
    """Collective. The norms are of what the sharded tables give for an id alone; each rank may look up its own."""
    generator = np.random.default_rng(0)
    kinds = {name: _kinds(rows, job.tables[name].rows, generator) for name, (rows, _) in found.items()}
    norms = _norms(sparse_arch, {name: np.concatenate(of) for name, of in kinds.items()}, job, ranks.device)
    uses = []
    for name, (_, often) in found.items():
        table = job.tables[name]
        ends = np.cumsum([len(kind) for kind in kinds[name]])[:-1]
        means = [float(part.mean()) if len(part) else math.nan for part in np.split(norms[name], ends)]
        total, hot = int(often.sum()), _hot_rows(table.rows)
        share = int(often[:hot].sum()) / total if total >= LOOKUPS_FOR_A_HOT_ROW * hot else math.nan
        uses.append(TableUse(name, table.rows, total, len(often), share, drawn_norm(table.dim, table.init_std), *means))
    return uses


def drawn_norm(dim: int, std: float) -> float:
    """The mean Euclidean norm of `dim` normal numbers of deviation `std`: of a row as it was drawn."""
    return std * math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def _hot_rows(rows: int) -> int:
    return max(1, math.ceil(HOT * rows))


def _kinds(seen: np.ndarray, rows: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Some of the hot rows, of the others seen, of those not seen."""
    hot, rest = seen[: _hot_rows(rows)], seen[_hot_rows(rows) :]
    drawn = np.unique(generator.integers(0, rows, 4 * SAMPLE))
    others = np.setdiff1d(drawn, seen)
    return [generator.permutation(kind)[:SAMPLE] for kind in (hot, rest, others)]


@torch.no_grad()
def _norms(
    sparse_arch: SparseArch, ids: Mapping[str, np.ndarray], job: JobConfig, device: torch.device
) -> dict[str, Tensor]:
    """[ids] of each table, looked up through one of its features, each id as a row of its own."""
    features = {next(one.name for one in job.features.sparse if one.table == table): table for table in ids}
    size = 3 * SAMPLE  # the same on every rank
    values, lengths = {}, {}
    for feature in job.features.sparse:
        of_feature = ids[features[feature.name]] if feature.name in features else np.empty(0, np.int64)
        values[feature.name] = torch.from_numpy(of_feature)
        lengths[feature.name] = (torch.arange(size) < len(of_feature)).int()
    sparse = unit_weighted(job.features, values, lengths)
    looked_up = sparse_arch({name: rows.to(device) for name, rows in sparse.items()})
    return {table: looked_up[name][: len(ids[table])].norm(dim=1).cpu() for name, table in features.items()}
