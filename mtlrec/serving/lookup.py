"""All tables behind one FBGEMM operator, as float32, float16 or int8.

Features are looked up in the order of the config, so that nothing is permuted, and no feature's ids are cut out of the
others': of a request's time behind seven lookups a sixth. FBGEMM's own check of ids is off
(`compat/fbgemm/exportable_lookup.py`): whoever calls checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.embedding_modules import quantize_state_dict
from torchrec.sparse.jagged_tensor import KeyedTensor

from mtlrec.compat.fbgemm.exportable_lookup import build_exportable_lookup
from mtlrec.config import SparseFeature
from mtlrec.errors import ArtifactError

Precision = Literal["fp32", "fp16", "int8"]
SPARSE_TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "int8": SparseType.INT8}
DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "int8": DataType.INT8}


class FrozenTables(nn.Module):
    """The weights of an `EmbeddingBagCollection`, which may be freed afterwards, for sums of rows.

    int8 keeps for every row its least value and a step, float16 each: 4 bytes beside `embedding_dim`.

    Args:
        tables: on the CPU
        features: in the order of the ids and of the result
        device: where the lookup runs

    Shapes: values [N] int64, offsets [S * B + 1], weights [N] or None -> KeyedTensor of [B, sum of dims].
    """

    def __init__(
        self,
        tables: EmbeddingBagCollection,
        features: Sequence[SparseFeature],
        precision: Precision,
        device: torch.device,
    ) -> None:
        super().__init__()
        configs = tables.embedding_bag_configs()
        names = [config.name for config in configs]
        rows: dict[str, tuple[Tensor, Tensor | None]] = {}
        quantize_state_dict(tables, rows, dict.fromkeys(names, DATA_TYPES[precision]))
        large = [config.name for config in configs if config.num_embeddings > 2**31]
        if device.type == "cuda" and large:
            raise ArtifactError(f"tables.{large[0]}: FBGEMM's lookup on CUDA counts to 2^31 rows; export for the CPU")
        place = EmbeddingLocation.HOST if device.type == "cpu" else EmbeddingLocation.DEVICE
        self._kernels = build_exportable_lookup(
            [
                (config.name, config.num_embeddings, config.embedding_dim, SPARSE_TYPES[precision], place)
                for config in configs
            ],
            feature_table_map=[names.index(feature.table) for feature in features],
            pooling_mode=PoolingMode.SUM,
            device=device,
            output_dtype=SparseType.FP32,
            row_alignment=1 if device.type == "cpu" else 16,
            weight_lists=[rows[name] for name in names],
        )
        self._index_dtype = torch.int64 if device.type == "cpu" else torch.int32
        self.keys = [feature.name for feature in features]
        dims = dict(zip(names, (config.embedding_dim for config in configs), strict=True))
        self.dims = [dims[feature.table] for feature in features]

    def forward(self, values: Tensor, offsets: Tensor, weights: Tensor | None) -> KeyedTensor:
        pooled = self._kernels[0](values.to(self._index_dtype), offsets.to(self._index_dtype), weights)
        return KeyedTensor(keys=self.keys, length_per_key=self.dims, values=pooled)
