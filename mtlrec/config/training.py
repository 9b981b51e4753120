"""How a job is trained: the loop, the plan of the tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mtlrec.config.base import Name, Positive, Strict


class TrainConfig(Strict):
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    eval_every: int = Field(0, ge=0, description="steps between validations; 0: at the end of each epoch")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: at the end of each epoch")
    keep_checkpoints: PositiveInt = 2
    keep_best: str | None = Field(
        None,
        description="TASK/METRIC of the valid split: the best checkpoint stays beside the last ones, and every "
        "evaluation is of a step that is saved",
    )
    background_checkpoints: bool = Field(
        True, description="write while training goes on, from a copy of all tensors in host memory"
    )
    log_every: PositiveInt = 50
    diagnose_every: int = Field(
        2000,
        ge=0,
        description="steps between looks into gates, experts, gradients and tables for TensorBoard, on the first batch "
        "of the valid split; one more after the last step; 0: none",
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0, lt=2**62)
    timeout_s: PositiveInt = Field(300, le=10**7, description="a collective that takes longer ends the run")


ShardingType = Literal[
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]


Kernel = Literal["dense", "fused", "fused_uvm", "fused_uvm_caching"]
LoadFactor = Annotated[float, Field(gt=0.0, le=1.0)]


class TableConstraint(Strict):
    types: Annotated[list[ShardingType], Field(min_length=1)]
    kernels: list[Kernel] | None = None
    cache_load_factor: LoadFactor | None = Field(
        None, description="share of a fused_uvm_caching table's rows that the GPU has room for"
    )


class CommunicationConfig(Strict):
    """What pooled embeddings and their gradients travel as between ranks; gloo takes fp16 for bf16."""

    forward: Literal["fp32", "fp16", "bf16"] = "fp32"
    backward: Literal["fp32", "fp16", "bf16"] = "fp32"


class ShardingConfig(Strict):
    plan: str | None = Field(None, description="a plan.json, as `mtlrec plan --output` writes it; no planner is asked")
    constraints: dict[Name, TableConstraint] = {}
    communication: CommunicationConfig = CommunicationConfig()
    hbm_gb: Positive | None = Field(None, description="device memory the planner may count on, per rank")
    ddr_gb: Positive | None = Field(None, description="host memory the planner may count on, per rank")
