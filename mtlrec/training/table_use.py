"""Which rows of the tables are looked up, and how far they are from where they were drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtlrec.config import JobConfig
from mtlrec.distributed.process_group import Ranks
from mtlrec.models.embeddings import INITIAL_STD
from mtlrec.training.grouped_auc import rows_of_all_ranks

HOT = 0.01
"""The share of a table's rows that are its hot ones: those looked up most."""
SAMPLE = 256
"""Rows of each kind whose norms are taken."""


@dataclass(frozen=True)
class TableUse:
    """Of one table, by the rows that were looked at.

    Attributes:
        rows: of the table
        lookups: how many there were
        seen: how many rows they went to
        hot_share: the share of the lookups that went to the hottest hundredth of the table's rows, one at least
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


class LookupCounts:
    """Accumulates batches' ids by table."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job
        self._ids: dict[str, list[np.ndarray]] = {table: [] for table in job.tables}

    def add(self, ids: KeyedJaggedTensor) -> None:
        of_features = ids.to_dict()
        for feature in self._job.features.sparse:
            self._ids[feature.table].append(of_features[feature.name].values().cpu().numpy())

    def compute(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Collective. By table the rows that were looked up, the most often first, and how often."""
        found = {}
        for table, parts in self._ids.items():
            mine = np.unique(np.concatenate([np.empty(0, np.int64), *parts]), return_counts=True)
            ids, counts = rows_of_all_ranks(*mine)
            rows, of_row = np.unique(ids, return_inverse=True)
            often = np.bincount(of_row, counts, minlength=len(rows)).astype(np.int64)
            order = np.argsort(-often, kind="stable")
            found[table] = rows[order], often[order]
        return found


def table_uses(tables: nn.Module, counts: LookupCounts, job: JobConfig, ranks: Ranks) -> list[TableUse]:
    """Collective. `tables` are the sharded ones; the norms are of what they give for an id alone."""
    found = counts.compute()
    generator = np.random.default_rng(0)  # the same on every rank: all look up the same rows
    kinds = {name: _kinds(rows, job.tables[name].rows, generator) for name, (rows, _) in found.items()}
    norms = _norms(tables, {name: np.concatenate(of) for name, of in kinds.items()}, job, ranks.device)
    uses = []
    for name, (_, often) in found.items():
        table = job.tables[name]
        ends = np.cumsum([len(kind) for kind in kinds[name]])[:-1]
        means = [float(part.mean()) if len(part) else math.nan for part in np.split(norms[name], ends)]
        total, hot = int(often.sum()), int(often[: _hot_rows(table.rows)].sum())
        share = hot / total if total else math.nan
        uses.append(TableUse(name, table.rows, total, len(often), share, drawn_norm(table.dim), *means))
    return uses


def drawn_norm(dim: int) -> float:
    """The mean Euclidean norm of `dim` normal numbers of the tables' first deviation."""
    return INITIAL_STD * math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def _hot_rows(rows: int) -> int:
    return max(1, math.ceil(HOT * rows))


def _kinds(seen: np.ndarray, rows: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Some of the hot rows, of the others seen, of those not seen."""
    hot, rest = seen[: _hot_rows(rows)], seen[_hot_rows(rows) :]
    drawn = np.unique(generator.integers(0, rows, 4 * SAMPLE))
    others = np.setdiff1d(drawn, seen)
    return [generator.permutation(kind)[:SAMPLE] for kind in (hot, rest, others)]


@torch.no_grad()
def _norms(tables: nn.Module, ids: Mapping[str, np.ndarray], job: JobConfig, device: torch.device) -> dict[str, Tensor]:
    """[ids] of each table, looked up through one of its features, each id as a row of its own."""
    features = {table: next(one.name for one in job.features.sparse if one.table == table) for table in ids}
    size = max(map(len, ids.values()))
    names = [feature.name for feature in job.features.sparse]
    by_feature = {feature: ids[table] for table, feature in features.items()}
    lengths = torch.zeros(len(names), size, dtype=torch.int32)
    for index, name in enumerate(names):
        lengths[index, : len(by_feature.get(name, ()))] = 1
    values = torch.from_numpy(np.concatenate([by_feature[name] for name in names if name in by_feature]))
    weights = torch.ones(len(values)) if job.features.is_weighted else None
    rows = KeyedJaggedTensor(keys=names, values=values, lengths=lengths.view(-1), weights=weights).to(device)
    looked_up = tables(rows).to_dict()
    return {table: looked_up[name][: len(ids[table])].norm(dim=1).cpu() for table, name in features.items()}
