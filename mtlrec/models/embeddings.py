"""Pooled embeddings by feature name.

TorchRec keeps pooling per table, the config per feature: tables always sum, and a mean feature is divided by its local
lengths after the lookup, with weights as without. The order of keys in a sharded `KeyedTensor` depends on the plan, so
features are always taken by name: a model that used `.values()` would read another order on another world size, without
an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from mtlrec.config import SparseFeature, TableConfig
from mtlrec.errors import ConfigError


def embedding_tables(
    tables: Mapping[str, TableConfig], features: Sequence[SparseFeature], device: torch.device
) -> EmbeddingBagCollection:
    """One `EmbeddingBagCollection` of all tables; a table may serve several features.

    Raises ConfigError for a table whose name TorchRec's `ModuleDict` cannot hold.
    """
    for name in tables:
        if hasattr(nn.ModuleDict(), name):
            raise ConfigError(f"tables.{name}: torch.nn.ModuleDict has an attribute so named; call the table {name}_id")
    configs = [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=[feature.name for feature in features if feature.table == name],
            pooling=PoolingType.SUM,
            init_fn=partial(nn.init.normal_, std=table.init_std),  # for a shard as for the whole
        )
        for name, table in tables.items()
    ]
    is_weighted = any(feature.weights is not None for feature in features)
    return EmbeddingBagCollection(tables=configs, device=device, is_weighted=is_weighted)


def is_table_parameter(name: str) -> bool:
    """Whether a parameter belongs to a table, by its name in `MultiTaskModel` or in any module around it."""
    return ".tables." in f".{name}"


def table_name(parameter: str) -> str:
    """Of a table's parameter, by its name in any module around the tables."""
    return parameter.removesuffix(".weight").rpartition(".")[2]


class PooledFeatures(nn.Module):
    """(KeyedTensor, ids) -> one [B, dim] tensor per sparse feature, in the config's order."""

    def __init__(self, features: Sequence[SparseFeature]) -> None:
        super().__init__()
        self.names = [feature.name for feature in features]
        self.means = {feature.name for feature in features if feature.pooling == "mean"}

    def forward(self, pooled: KeyedTensor, ids: KeyedJaggedTensor) -> list[Tensor]:
        by_name = pooled.to_dict()
        lengths = dict(zip(ids.keys(), ids.lengths().view(len(ids.keys()), -1), strict=True))
        for name in sorted(self.means):
            by_name[name] = by_name[name] / lengths[name].clamp(min=1).to(by_name[name].dtype)[:, None]
        return [by_name[name] for name in self.names]
