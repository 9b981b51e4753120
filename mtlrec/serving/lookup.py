"""What looks up in a served model: each collection of tables behind one FBGEMM operator, as float32, float16 or int8.

B rows, S features of a collection. Features are looked up in the order of the config, so that nothing is permuted, and
no feature's ids are cut out of the others': of a request's time behind seven lookups a sixth. FBGEMM's own check of ids
is off (`compat/fbgemm/exportable_lookup.py`): whoever calls checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType
from torchrec.quant.embedding_modules import quantize_state_dict
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from mtlrec.compat.fbgemm.exportable_lookup import build_exportable_lookup
from mtlrec.config import Collection, FeaturesConfig, TableConfig
from mtlrec.errors import ArtifactError
from mtlrec.models.sparse_arch import PooledVectors, SparseArch

Precision = Literal["fp32", "fp16", "int8"]
SPARSE_TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "int8": SparseType.INT8}
DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "int8": DataType.INT8}
QuantizedRows = dict[str, tuple[Tensor, Tensor | None]]


class FrozenSparseArch(nn.Module):
    """The weights of a `SparseArch`, which may be freed afterwards; takes and gives what that does.

    int8 keeps for every row its least value and a step, float16 each: 4 bytes beside `embedding_dim`.

    Args:
        sparse_arch: on the CPU
        features, tables: the job's
        device: where the lookups run
    """

    def __init__(
        self,
        sparse_arch: SparseArch,
        features: FeaturesConfig,
        tables: Mapping[str, TableConfig],
        precision: Precision,
        device: torch.device,
    ) -> None:
        super().__init__()
        large = [name for name, table in tables.items() if table.rows > 2**31]
        if device.type == "cuda" and large:
            raise ArtifactError(f"tables.{large[0]}: FBGEMM's lookup on CUDA counts to 2^31 rows; export for the CPU")
        rows: QuantizedRows = {}
        quantize_state_dict(sparse_arch.collections, rows, dict.fromkeys(tables, DATA_TYPES[precision]))
        self.collections = nn.ModuleDict(
            {
                name: FrozenBags(
                    collection,
                    {table: tables[table] for table in collection.tables},
                    [features.sparse[place].table for place in collection.places],
                    rows,
                    precision,
                    device,
                )
                for name, collection in features.collections.items()
            }
        )
        self.vectors = PooledVectors(features.sparse)

    def forward(self, sparse: dict[str, KeyedJaggedTensor]) -> dict[str, Tensor]:
        looked_up = [collection(sparse[name]) for name, collection in self.collections.items()]
        return self.vectors(looked_up, sparse)


class FrozenBags(nn.Module):
    """One collection of tables that sum: ids of S features -> KeyedTensor of [B, sum of dims].

    Args:
        table_of_features: the table of each feature of the collection
        rows: of every table, quantized
    """

    def __init__(
        self,
        collection: Collection,
        tables: Mapping[str, TableConfig],
        table_of_features: list[str],
        rows: QuantizedRows,
        precision: Precision,
        device: torch.device,
    ) -> None:
        super().__init__()
        names = list(tables)
        place = EmbeddingLocation.HOST if device.type == "cpu" else EmbeddingLocation.DEVICE
        self._kernels = build_exportable_lookup(
            [(name, table.rows, table.dim, SPARSE_TYPES[precision], place) for name, table in tables.items()],
            feature_table_map=[names.index(table) for table in table_of_features],
            pooling_mode=PoolingMode.SUM,
            device=device,
            output_dtype=SparseType.FP32,
            row_alignment=1 if device.type == "cpu" else 16,
            weight_lists=[rows[name] for name in names],
        )
        self._index_dtype = torch.int64 if device.type == "cpu" else torch.int32
        self.keys = collection.features
        self.dims = [tables[table].dim for table in table_of_features]

    def forward(self, ids: KeyedJaggedTensor) -> KeyedTensor:
        offsets = nn.functional.pad(ids.lengths().cumsum(0), (1, 0))
        indices = ids.values().to(self._index_dtype)
        pooled = self._kernels[0](indices, offsets.to(self._index_dtype), ids.weights_or_none())
        return KeyedTensor(keys=self.keys, length_per_key=self.dims, values=pooled)
