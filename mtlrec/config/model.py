"""Bottom, fusion and heads: kinds whose keys are the constructors' arguments."""

from __future__ import annotations

from typing import Annotated

from mtlrec import heads, layers
from mtlrec.config.base import Strict
from mtlrec.config.kinds.family import Family, PartConfig

BOTTOM = Family("bottom", layers.BOTTOMS, layers.Bottom, supplied=("dense_dim", "embedding_dims"))
HEAD = Family("head", heads.HEADS, heads.Head, supplied=("tasks", "parents", "input_dim", "sampling_rates"))
FUSION = Family("fusion layer", layers.FUSIONS, layers.FusionLayer, supplied=("input_dim", "num_tasks"))


Bottom = Annotated[PartConfig, BOTTOM]
Fusion = Annotated[PartConfig, FUSION]
Heads = Annotated[PartConfig, HEAD]


class ModelConfig(Strict):
    bottom: Bottom = BOTTOM("concat")
    fusion: Fusion
    heads: Heads = HEAD("independent")
