"""Bottom, fusion and heads: a class per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mtlrec import layers
from mtlrec.config.base import NonEmptyWidths, NonNegative, Strict, Widths
from mtlrec.config.kinds.family import Family, PartConfig

BOTTOM = Family("bottom", layers.BOTTOMS, layers.Bottom, supplied=("dense_dim", "embedding_dims"))
FUSION = Family("fusion layer", layers.FUSIONS, layers.FusionLayer, supplied=("input_dim", "num_tasks"))


class IndependentHeads(Strict):
    """A tower per task on p(task | parent), trained where the parent is 1; `entire_space`: p(task), on all rows."""

    kind: Literal["independent"] = "independent"
    tower_hidden: Widths = [64]
    entire_space: bool = False


class ESMMHeads(Strict):
    """p(task) as the product along the funnel, trained on the parent's whole space (Ma et al. 2018)."""

    kind: Literal["esmm"]
    tower_hidden: Widths = [64]


class AITMHeads(Strict):
    """What a task learned is handed to the next along the funnel by attention (Xi et al. 2021)."""

    kind: Literal["aitm"]
    tower_hidden: NonEmptyWidths = [64]
    calibrator: NonNegative = Field(0.6, description="weight of max(0, p(child) - p(parent))")


class DBMTLHeads(Strict):
    """A child's tower reads its parent's hidden features (Wang et al. 2019)."""

    kind: Literal["dbmtl"]
    tower_hidden: Widths = [64]
    relation_hidden: NonEmptyWidths = Field([32], description="of the MLP over a task's and its parent's features")


class ESCM2Heads(Strict):
    """ESMM, with p(child | parent) trained by counterfactual risk: inverse propensity or doubly robust (Wang 2022)."""

    kind: Literal["escm2_ips", "escm2_dr"]
    tower_hidden: Widths = [64]
    propensity_floor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.05, description="p(parent) counts as at least")
    conditional_weight: NonNegative = Field(1.0, description="of the loss of p(child | parent)")
    entire_weight: NonNegative = Field(1.0, description="of the loss of p(child), ESMM's")


Bottom = Annotated[PartConfig, BOTTOM]
Fusion = Annotated[PartConfig, FUSION]
Heads = Annotated[
    IndependentHeads | ESMMHeads | AITMHeads | DBMTLHeads | ESCM2Heads,
    Field(discriminator="kind"),
]


class ModelConfig(Strict):
    bottom: Bottom = BOTTOM("concat")
    fusion: Fusion
    heads: Heads = IndependentHeads()
