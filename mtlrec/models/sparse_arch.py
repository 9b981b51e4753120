"""Everything sparse: ids in, one vector per feature out.

B batch. The tables are in collections, each a module of TorchRec that is sharded as a whole (`features.collections`
says which table is in which). Another kind of lookup is another entry of `SparseArch.collections`, and another leaf
that makes vectors of what it gives. TorchRec's pipeline traces `SparseArch`, since that holds sharded modules:
everything behind the lookups is in leaves without tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from mtlrec.config import Collection, FeaturesConfig, SparseFeature, TableConfig
from mtlrec.errors import ConfigError


class SparseArch(nn.Module):
    """ids by collection -> {feature: [B, dim]}, in the config's order of features.

    Args:
        features: the job's
        tables: by name
        device: where the tables are made, perhaps meta

    Raises ConfigError for a table whose name TorchRec's `ModuleDict` cannot hold.
    """

    def __init__(self, features: FeaturesConfig, tables: Mapping[str, TableConfig], device: torch.device) -> None:
        super().__init__()
        _check_names(tables)
        collections = features.collections
        self.collections = nn.ModuleDict(
            {name: _embedding_bags(each, features.sparse, tables, device) for name, each in collections.items()}
        )
        self.vectors = PooledVectors(features.sparse)
        self._tables = {
            f"{name}.embedding_bags.{table}.weight": table
            for name, each in collections.items()
            for table in each.tables
        }

    def forward(self, sparse: dict[str, KeyedJaggedTensor]) -> dict[str, Tensor]:
        looked_up = [collection(sparse[name]) for name, collection in self.collections.items()]
        return self.vectors(looked_up, sparse)

    def table_of(self, parameter: str) -> str | None:
        """The table that a parameter is, by its name in this module or any around it, sharded or not; None: none."""
        return self._tables.get(parameter.partition("collections.")[2])

    def table_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every table's name and weights."""
        for name, parameter in self.named_parameters():
            table = self.table_of(name)
            if table is not None:
                yield table, parameter


class PooledVectors(nn.Module):
    """What each collection of bags looked up, and its ids -> {feature: [B, dim]}, in the config's order.

    TorchRec keeps pooling per table, the config per feature: tables always sum, and a mean feature is divided by its
    local lengths here, with weights as without. The order of keys in a sharded `KeyedTensor` depends on the plan, so
    features are always taken by name: a model that used `.values()` would read another order on another world size,
    without an error.
    """

    def __init__(self, features: Sequence[SparseFeature]) -> None:
        super().__init__()
        self.names = [feature.name for feature in features]
        self.means = {feature.name for feature in features if feature.pooling == "mean"}

    def forward(self, looked_up: list[KeyedTensor], sparse: dict[str, KeyedJaggedTensor]) -> dict[str, Tensor]:
        sums = {name: vector for pooled in looked_up for name, vector in pooled.to_dict().items()}
        counts = {name: count for ids in sparse.values() for name, count in _counts(ids, self.means).items()}
        return {name: sums[name] / counts[name] if name in counts else sums[name] for name in self.names}


def _counts(ids: KeyedJaggedTensor, features: set[str]) -> dict[str, Tensor]:
    """[B, 1] float32 of each of these features that is among the ids: how many it has in each row, 1 at least."""
    lengths = ids.lengths().view(len(ids.keys()), -1)
    return {
        name: of_feature.clamp(min=1).float()[:, None]
        for name, of_feature in zip(ids.keys(), lengths, strict=True)
        if name in features
    }


def _embedding_bags(
    collection: Collection,
    features: Sequence[SparseFeature],
    tables: Mapping[str, TableConfig],
    device: torch.device,
) -> EmbeddingBagCollection:
    """Tables that sum; a table may serve several features."""
    configs = [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=tables[name].rows,
            embedding_dim=tables[name].dim,
            feature_names=[feature.name for feature in features if feature.table == name],
            pooling=PoolingType.SUM,
            init_fn=partial(nn.init.normal_, std=tables[name].init_std),  # for a shard as for the whole
        )
        for name in tables
        if name in collection.tables
    ]
    return EmbeddingBagCollection(tables=configs, device=device, is_weighted=collection.is_weighted)


def _check_names(tables: Mapping[str, TableConfig]) -> None:
    for name in tables:
        if hasattr(nn.ModuleDict(), name):
            remedy = f"declare it as tables.{name}_id, and name that in its features (table: {name}_id)"
            raise ConfigError(f"tables.{name}: torch.nn.ModuleDict has an attribute so named; {remedy}")


def unit_weighted(
    features: FeaturesConfig, values: Mapping[str, Tensor], lengths: Mapping[str, Tensor]
) -> dict[str, KeyedJaggedTensor]:
    """What `SparseArch` takes, of ids that all weigh 1. `values` and `lengths` [B] are by feature."""
    sparse = {}
    for name, collection in features.collections.items():
        ids = torch.cat([values[feature] for feature in collection.features])
        sparse[name] = KeyedJaggedTensor(
            keys=collection.features,
            values=ids,
            lengths=torch.cat([lengths[feature] for feature in collection.features]),
            weights=torch.ones(len(ids)) if collection.is_weighted else None,
        )
    return sparse
