"""Bottom, fusion and heads: a class per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from mtlrec.config.base import Dropout, Levels, NonEmptyWidths, NonNegative, Strict, Widths


class ConcatBottom(Strict):
    kind: Literal["concat"] = "concat"
    hidden: Widths = []


class DotBottom(Strict):
    """DLRM: an MLP on the dense features, dot products between all vectors."""

    kind: Literal["dot"]
    hidden: Widths = [64]


class CrossBottom(Strict):
    """DCN-V2."""

    kind: Literal["cross"]
    num_layers: PositiveInt = 2
    rank: PositiveInt | None = None


class ExpertsConfig(Strict):
    """What every fusion layer takes. A layer of an expert is Linear, norm, activation, dropout."""

    kind: str
    expert_hidden: Levels
    activation: Literal["relu", "silu", "gelu"] = "relu"
    norm: Literal["layer", "batch"] | None = Field(None, description="batch: over the rows of one rank")
    dropout: Dropout = 0.0
    recompute: bool = Field(False, description="memory for time: backward computes the experts' activations again")

    @field_validator("recompute")
    @classmethod
    def _recompute_goes_without_batch_norm(cls, recompute: bool, info: ValidationInfo) -> bool:
        if recompute and info.data.get("norm") == "batch":
            raise ValueError("norm: batch would count every row twice; take norm: layer, or leave recompute out")
        return recompute


class GatedConfig(ExpertsConfig):
    gate_dropout: Dropout = Field(0.0, description="the chance that training hides an expert from a gate")


class SingleTaskFusion(ExpertsConfig):
    kind: Literal["single_task"]


class SharedBottomFusion(ExpertsConfig):
    kind: Literal["shared_bottom"]


class AsymmetricFusion(ExpertsConfig):
    """Tasks in their order; each reads the ones before it and teaches them nothing."""

    kind: Literal["asymmetric"]


class CrossStitchFusion(ExpertsConfig):
    kind: Literal["cross_stitch"]


class CustomizedFusion(ExpertsConfig):
    kind: Literal["customized"]
    merge: Literal["project", "weight"] = "project"


class MMoEFusion(GatedConfig):
    kind: Literal["mmoe"]
    num_experts: PositiveInt = 4
    gate_hidden: list[Widths] | None = None

    @model_validator(mode="after")
    def _a_gate_per_level(self) -> MMoEFusion:
        if self.gate_hidden is not None and len(self.gate_hidden) != len(self.expert_hidden):
            raise ValueError(f"gate_hidden has {len(self.gate_hidden)} levels, expert_hidden {len(self.expert_hidden)}")
        return self


class PLEFusion(GatedConfig):
    kind: Literal["ple"]
    num_task_experts: PositiveInt | list[PositiveInt] = 1
    num_shared_experts: PositiveInt = 1


class AdaTTSpFusion(GatedConfig):
    kind: Literal["adatt_sp"]
    num_task_experts: PositiveInt = 1
    native_residual: bool = True


class AdaTTFusion(GatedConfig):
    kind: Literal["adatt"]
    num_task_experts: PositiveInt | list[PositiveInt] = 1
    num_shared_experts: PositiveInt = 1
    native_residual: bool = True


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


Bottom = Annotated[ConcatBottom | DotBottom | CrossBottom, Field(discriminator="kind")]
Fusion = Annotated[
    SingleTaskFusion
    | SharedBottomFusion
    | AsymmetricFusion
    | CrossStitchFusion
    | CustomizedFusion
    | MMoEFusion
    | PLEFusion
    | AdaTTSpFusion
    | AdaTTFusion,
    Field(discriminator="kind"),
]
SLOTTED = ("single_task", "asymmetric", "cross_stitch", "customized", "ple", "adatt_sp", "adatt")
"""The fusion kinds whose tasks may have features of their own."""
Heads = Annotated[
    IndependentHeads | ESMMHeads | AITMHeads | DBMTLHeads | ESCM2Heads,
    Field(discriminator="kind"),
]


class ModelConfig(Strict):
    bottom: Bottom = ConcatBottom()
    fusion: Fusion
    heads: Heads = IndependentHeads()
