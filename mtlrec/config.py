"""The job: one strict pydantic tree, one YAML file, one vocabulary.

Unknown keys are errors, and every error says which key, which value, what is allowed, and on which line of the
YAML (`config_errors.py` writes that line). Kinds are discriminated unions, so that `grep "mmoe"` finds where one is
declared. Nothing here imports torch: a config can be checked on a login node in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Widths = list[PositiveInt]
NonEmptyWidths = Annotated[list[PositiveInt], Field(min_length=1)]
Levels = Annotated[list[NonEmptyWidths], Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class LocatedError(ValueError):
    """A rule that spans several keys was broken; `path` is the key to blame."""

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        super().__init__(message)
        self.path = tuple(path)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---- data


class DataConfig(Strict):
    """Where the rows are. `train`, `valid` and `test` are file names or globs, relative to `root`."""

    root: Path = Path(".")
    train: Annotated[list[str], Field(min_length=1)] = ["train/*.parquet"]
    valid: list[str] = ["valid/*.parquet"]
    test: list[str] = ["test/*.parquet"]
    batch_size: PositiveInt = Field(1024, description="rows per rank and step")
    shuffle: Literal["none", "row_group", "rows"] = "rows"
    shuffle_buffer: PositiveInt = Field(65_536, description="rows that are shuffled among each other")
    prefetch: PositiveInt = Field(4, description="batches made ahead by the loader's thread")
    keys: list[str] = Field([], description="columns that `predict` carries over; empty: all of them")


class TableConfig(Strict):
    rows: PositiveInt
    dim: PositiveInt = Field(multiple_of=4, description="FBGEMM wants multiples of 4")


class DenseFeature(Strict):
    """A numeric column. `standardise` takes (x - mean) / std; nulls become 0 after the transform."""

    name: Name
    transform: Literal["none", "log1p", "standardise"] = "none"
    mean: float | None = None
    std: Positive | None = None

    @model_validator(mode="after")
    def _mean_and_std_belong_to_standardise(self) -> DenseFeature:
        given = [value for value in (self.mean, self.std) if value is not None]
        if self.transform == "standardise" and len(given) < 2:
            raise ValueError("transform standardise needs both mean and std")
        if self.transform != "standardise" and given:
            raise ValueError("mean and std are for transform standardise only")
        return self


class SparseFeature(Strict):
    """A column of ids (one per row) or of lists of ids. Nulls and empty lists pool to a zero vector."""

    name: Name
    table: Name
    pooling: Literal["sum", "mean"] = "sum"
    max_length: PositiveInt | None = Field(None, description="longer lists keep their last max_length ids")


class FeaturesConfig(Strict):
    dense: list[DenseFeature] = []
    sparse: Annotated[list[SparseFeature], Field(min_length=1)]

    @property
    def names(self) -> list[str]:
        return [dense.name for dense in self.dense] + [sparse.name for sparse in self.sparse]


# ---- tasks


class Task(Strict):
    """One objective. `given`: the task it follows in the funnel. `space`: the 0/1 task or column that admits a row."""

    name: Name
    kind: Literal["binary", "regression"] = "binary"
    label: str
    given: Name | None = None
    space: str | None = None
    weight: NonNegative = 1.0
    features: list[Name] | None = Field(None, description="what this task may see; none named: everything")


# ---- model


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
Heads = Annotated[IndependentHeads | ESMMHeads, Field(discriminator="kind")]


class ModelConfig(Strict):
    bottom: Bottom = ConcatBottom()
    fusion: Fusion
    heads: Heads = IndependentHeads()


# ---- loss, optim, train


class StaticWeighting(Strict):
    """Every task's loss times its `weight`."""

    kind: Literal["static"] = "static"


class DecayWeighting(Strict):
    """w_k(t) = w_k0 * rate_k ** t (PLE, Tang et al. 2020), t the epoch or the step."""

    kind: Literal["decay"]
    initial: dict[Name, NonNegative] = Field({}, description="w_k0 by task; the task's weight where not given")
    rate: dict[Name, Annotated[float, Field(gt=0.0, le=1.0)]] = {}
    unit: Literal["epoch", "step"] = "epoch"


class LossConfig(Strict):
    weighting: Annotated[StaticWeighting | DecayWeighting, Field(discriminator="kind")] = StaticWeighting()


class Schedule(Strict):
    """Linear warm-up, then constant, or down to `min_lr_ratio` of lr at the last step of the job."""

    lr: Positive
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_ratio: Fraction = 0.0


class SparseOptim(Schedule):
    """Fused into FBGEMM's backward. Adam's and Adagrad's states follow FBGEMM's definitions."""

    kind: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    lr: Positive = 0.05


class DenseOptim(Schedule):
    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = Field(None, description="global gradient norm of the dense parameters")


class OptimConfig(Strict):
    sparse: SparseOptim = SparseOptim()
    dense: DenseOptim = DenseOptim()


class TrainConfig(Strict):
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    eval_every: int = Field(0, ge=0, description="steps between validations; 0: at the end of each epoch")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: at the end of each epoch")
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
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


class TableConstraint(Strict):
    types: Annotated[list[ShardingType], Field(min_length=1)]
    kernels: list[Literal["dense", "fused", "fused_uvm", "fused_uvm_caching"]] | None = None


class ShardingConfig(Strict):
    constraints: dict[Name, TableConstraint] = {}
    hbm_gb: Positive | None = Field(None, description="device memory the planner may count on, per rank")
    ddr_gb: Positive | None = Field(None, description="host memory the planner may count on, per rank")


class JobConfig(Strict):
    """A whole job. The class checks what spans several keys; each section checks itself."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
    data: DataConfig = DataConfig()
    tables: Annotated[dict[Name, TableConfig], Field(min_length=1)]
    features: FeaturesConfig
    tasks: Annotated[list[Task], Field(min_length=1)]
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()

    @field_validator("tasks")
    @classmethod
    def _task_names_are_unique(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise LocatedError(("tasks", index, "name"), f"task '{name}' is declared twice; task names are unique")
        return tasks

    @model_validator(mode="after")
    def _check(self) -> JobConfig:
        self._check_features()
        self._check_funnel()
        self._check_task_features()
        self._check_fusion()
        self._check_names_of_tasks_and_tables()
        return self

    def _check_features(self) -> None:
        seen: set[str] = set()
        for section in ("dense", "sparse"):
            for index, feature in enumerate(getattr(self.features, section)):
                path = ("features", section, index)
                if feature.name in seen:
                    raise LocatedError((*path, "name"), f"feature '{feature.name}' is declared twice")
                seen.add(feature.name)
                if section == "sparse" and feature.table not in self.tables:
                    raise LocatedError((*path, "table"), f"no such table; tables are {_names(self.tables)}")
        for index, name in enumerate(self.data.keys):
            if name in self.data.keys[:index]:
                raise LocatedError(("data", "keys", index), f"'{name}' is named twice")
        for table in self.tables:
            if all(feature.table != table for feature in self.features.sparse):
                raise LocatedError(("tables", table), "no feature reads this table; name it in a feature or remove it")
        for index, task in enumerate(self.tasks):
            for key in ("label", "space"):
                if getattr(task, key) in seen:
                    remedy = "a label among the inputs leaks the answer; remove it from features"
                    raise LocatedError(("tasks", index, key), f"is also a feature; {remedy}")

    def _check_funnel(self) -> None:
        by_name = {task.name: task for task in self.tasks}
        for index, task in enumerate(self.tasks):
            path = ("tasks", index)
            if task.given is not None:
                if task.given not in by_name:
                    raise LocatedError((*path, "given"), f"no such task; tasks are {_names(by_name)}")
                if task.kind != "binary" or by_name[task.given].kind != "binary":
                    raise LocatedError(
                        (*path, "given"), "both ends of an edge are binary tasks; a regression takes space"
                    )
                if task.space is not None:
                    raise LocatedError((*path, "space"), f"given already sets the space ({task.given} == 1); drop one")
            self._check_space(index, task, by_name)
            walked, parent = [task.name], task.given
            while parent is not None:
                if parent in walked:
                    loop = " -> ".join([*walked, parent])
                    raise LocatedError((*path, "given"), f"the task graph has a cycle: {loop}")
                walked.append(parent)
                parent = by_name[parent].given if parent in by_name else None

    def _check_space(self, index: int, task: Task, by_name: Mapping[str, Task]) -> None:
        """A space is a binary task or a 0/1 column, and not the task itself: it would see its positives only."""
        path = ("tasks", index, "space")
        regressed = {other.label for other in self.tasks if other.kind == "regression"}
        if task.kind == "binary" and task.label in regressed:
            raise LocatedError(("tasks", index, "label"), "is a regression's label too; a binary label is 0 or 1")
        if task.space is None:
            return
        if task.space in regressed or (task.space in by_name and by_name[task.space].kind != "binary"):
            raise LocatedError(path, "is a regression; a space is a binary task or a 0/1 column")
        if task.space in (task.name, task.label):
            raise LocatedError(path, "is the task itself, which would then be trained on its positives alone")

    def _check_task_features(self) -> None:
        if all(task.features is None for task in self.tasks):
            return
        if self.model.fusion.kind not in SLOTTED:
            first = next(i for i, task in enumerate(self.tasks) if task.features is not None)
            allowed = f"a fusion with a slot per task: {_names(SLOTTED)}"
            message = f"{self.model.fusion.kind} reads one input for all tasks; features per task take {allowed}"
            raise LocatedError(("tasks", first, "features"), message)
        for index, task in enumerate(self.tasks):
            if task.features == []:
                raise LocatedError(("tasks", index, "features"), "is empty; name at least one feature, or leave it out")
            for name in task.features or []:
                if name not in self.features.names:
                    message = f"'{name}' is no feature; features are {_names(self.features.names)}"
                    raise LocatedError(("tasks", index, "features"), message)

    def _check_fusion(self) -> None:
        fusion, num_tasks = self.model.fusion, len(self.tasks)
        if isinstance(fusion, AsymmetricFusion) and num_tasks == 1:
            message = "is for two tasks or more; for one take shared_bottom"
            raise LocatedError(("model", "fusion", "kind"), message)
        per_task = fusion.num_task_experts if isinstance(fusion, PLEFusion | AdaTTFusion) else 1
        if isinstance(per_task, list) and len(per_task) != num_tasks:
            message = f"has {len(per_task)} entries for {num_tasks} tasks; give one per task"
            raise LocatedError(("model", "fusion", "num_task_experts"), message)
        if fusion.norm == "batch" and self.data.batch_size == 1:
            raise LocatedError(("data", "batch_size"), "model.fusion.norm: batch has no variance in one row; take more")

    def _check_names_of_tasks_and_tables(self) -> None:
        names = [task.name for task in self.tasks]
        if isinstance(self.loss.weighting, DecayWeighting):
            for key in ("initial", "rate"):
                for name in getattr(self.loss.weighting, key):
                    if name not in names:
                        raise LocatedError(("loss", "weighting", key, name), f"no such task; tasks are {_names(names)}")
        for table in self.sharding.constraints:
            if table not in self.tables:
                raise LocatedError(
                    ("sharding", "constraints", table), f"no such table; tables are {_names(self.tables)}"
                )

    # ---- derived, read-only

    @property
    def label_columns(self) -> list[str]:
        """The columns the labels and spaces need, each once, labels first."""
        tasks = {task.name for task in self.tasks}
        spaces = [task.space for task in self.tasks if task.space is not None and task.space not in tasks]
        return list(dict.fromkeys([task.label for task in self.tasks] + spaces))

    def dump(self) -> dict[str, Any]:
        """Plain YAML types; `JobConfig.model_validate(job.dump()) == job`."""
        return self.model_dump(mode="json")


def _names(items: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(items)
