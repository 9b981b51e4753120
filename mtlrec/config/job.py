"""The job: one strict pydantic tree, one YAML file, one vocabulary.

Unknown keys are errors, and every error says which key, which value, what is allowed, and on which line of the
YAML (`explain.py` writes that line). What a section with a `kind` may say is what that kind's constructor takes
(`kinds/family.py`), so a check of a config imports torch, two seconds on a CPU.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from mtlrec.config.base import Name, Strict, listed
from mtlrec.config.data import DataConfig, FeaturesConfig, MetricsConfig, TableConfig
from mtlrec.config.kinds.family import located
from mtlrec.config.kinds.optimizers import OptimConfig
from mtlrec.config.kinds.weighting import DecayWeighting, LossConfig
from mtlrec.config.model import FUSION, ModelConfig
from mtlrec.config.tasks import TASK, LabelColumn, Task, check_columns, check_graph, check_options, label_columns
from mtlrec.config.training import ShardingConfig, TrainConfig
from mtlrec.errors import LocatedError
from mtlrec.heads import Head
from mtlrec.metrics import directions

STATISTICS_TO_COME = "statistics_to_come"
"""In the context of a validation: the job may leave open what `mtlrec prepare stats` is about to find out."""


class Judge(NamedTuple):
    """A task's metric, and whether the highest value of it is the best."""

    task: str
    metric: str
    highest_is_best: bool

    def __str__(self) -> str:
        return f"{self.task}/{self.metric}"


class JobConfig(Strict):
    """A whole job. The class checks what spans several keys; each section checks itself."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
    data: DataConfig = DataConfig()
    tables: dict[Name, TableConfig] = {}
    features: FeaturesConfig
    tasks: Annotated[list[Annotated[Task, TASK]], Field(min_length=1)]
    model: ModelConfig
    loss: LossConfig = LossConfig()
    metrics: MetricsConfig = MetricsConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()

    @field_validator("tasks")
    @classmethod
    def _task_names_are_unique(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise LocatedError((index, "name"), f"task '{name}' is declared twice; task names are unique")
        return tasks

    @model_validator(mode="after")
    def _move_own_tables_to_tables(self) -> JobConfig:
        """A table that a feature declares in place becomes one of `tables`; the resolved job has it there alone."""
        tables, sparse = dict(self.tables), []
        for index, feature in enumerate(self.features.sparse):
            own = feature.own_table
            if own and feature.name in self.tables:
                message = f"declares a table that tables.{feature.name} declares too; give it in one place"
                raise LocatedError(("features", "sparse", index, "rows"), message)
            if own:
                tables[feature.name] = TableConfig(**own)
                feature = feature.model_copy(update={"table": feature.name} | dict.fromkeys(own))
            sparse.append(feature)
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "features", self.features.model_copy(update={"sparse": sparse}))
        return self

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> JobConfig:
        self._check_features()
        if not (info.context or {}).get(STATISTICS_TO_COME):
            self._check_statistics()
        check_options(self.tasks)
        check_graph(self.tasks)
        check_columns(self.tasks)
        self._check_heads()
        self._check_task_features()
        self._check_batch_norm()
        self._check_parts()
        self._check_names_of_tasks_and_tables()
        self._check_keep_best()
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
                    known = f"tables are {listed(self.tables)}" if self.tables else "the job declares none"
                    raise LocatedError((*path, "table"), f"no such table; {known}")
        for index, name in enumerate(self.data.keys):
            if name in self.data.keys[:index]:
                raise LocatedError(("data", "keys", index), f"'{name}' is named twice")
        for table in self.tables:
            if all(feature.table != table for feature in self.features.sparse):
                raise LocatedError(("tables", table), "no feature reads this table; name it in a feature or remove it")
        for index, task in enumerate(self.tasks):
            if task.label in self.features.columns:
                remedy = "a label among the inputs leaks the answer; remove it from features"
                raise LocatedError(("tasks", index, "label"), f"is also a feature; {remedy}")

    def _check_statistics(self) -> None:
        remedy = "or run `mtlrec prepare stats` and name its file in data.statistics"
        for index, dense in enumerate(self.features.dense):
            if "standardize" in dense.steps and dense.mean is None:
                message = f"standardize needs mean and std: give them, {remedy}"
                raise LocatedError(("features", "dense", index, "transform"), message)
        for index, sparse in enumerate(self.features.sparse):
            path = ("features", "sparse", index, "boundaries")
            if sparse.transform != "bucketize":
                continue
            if sparse.boundaries is None:
                raise LocatedError(path[:-1], f"transform bucketize needs boundaries: give them, {remedy}")
            rows = self.tables[sparse.table].rows
            if len(sparse.boundaries) >= rows:
                message = f"make {len(sparse.boundaries) + 1} buckets, table '{sparse.table}' has {rows} rows"
                raise LocatedError(path, message)

    def _check_task_features(self) -> None:
        if all(task.features is None for task in self.tasks):
            return
        if not self.model.fusion.part_class.takes_slots:
            first = next(i for i, task in enumerate(self.tasks) if task.features is not None)
            slotted = listed(kind for kind, fusion in FUSION.kinds.items() if fusion.takes_slots)
            allowed = f"a fusion with a slot per task: {slotted}"
            message = f"{self.model.fusion.kind} reads one input for all tasks; features per task take {allowed}"
            raise LocatedError(("tasks", first, "features"), message)
        for index, task in enumerate(self.tasks):
            if task.features == []:
                raise LocatedError(("tasks", index, "features"), "is empty; name at least one feature, or leave it out")
            for name in task.features or []:
                if name not in self.features.names:
                    message = f"'{name}' is no feature; features are {listed(self.features.names)}"
                    raise LocatedError(("tasks", index, "features"), message)

    def _check_parts(self) -> None:
        """Whether the model's parts can be built of what the job says."""
        self.model.bottom.check(("model", "bottom"), **self.bottom_arguments)
        self.model.fusion.check(("model", "fusion"), input_dim=1, num_tasks=len(self.tasks))

    def _check_batch_norm(self) -> None:
        if self.model.fusion.arguments.get("norm") == "batch" and self.data.batch_size == 1:
            raise LocatedError(("data", "batch_size"), "model.fusion.norm: batch has no variance in one row; take more")

    def _check_heads(self) -> None:
        self.model.heads.check(("model", "heads"), **self.head_arguments, input_dim=1)
        head = self._meta_head()
        if any(task.prior is not None for task in self.tasks):
            with located(("model", "heads")):
                self.start(head)
        if head.corrects_parents:
            return
        parents = {task.given for task in self.tasks}
        for index, task in enumerate(self.tasks):
            if task.negative_sampling_rate < 1 and task.name in parents:
                kind = self.model.heads.kind
                message = f"model.heads {kind} learns tasks one by one, so its children cannot be corrected; take esmm"
                raise LocatedError(("tasks", index, "negative_sampling_rate"), message)

    def _check_names_of_tasks_and_tables(self) -> None:
        names = [task.name for task in self.tasks]
        if isinstance(self.loss.weighting, DecayWeighting):
            for key in ("initial", "rate"):
                for name in getattr(self.loss.weighting, key):
                    if name not in names:
                        raise LocatedError(("loss", "weighting", key, name), f"no such task; tasks are {listed(names)}")
        for table in self.sharding.constraints:
            if table not in self.tables:
                raise LocatedError(
                    ("sharding", "constraints", table), f"no such table; tables are {listed(self.tables)}"
                )

    def _check_keep_best(self) -> None:
        if self.train.keep_best is None:
            return
        name, _, metric = self.train.keep_best.partition("/")
        task = next((task for task in self.tasks if task.name == name), None)
        if task is None:
            message = (
                f"wants TASK/METRIC, as in {self.tasks[0].name}/auc; tasks are {listed(t.name for t in self.tasks)}"
            )
            raise LocatedError(("train", "keep_best"), message)
        known = self._directions(task)
        if metric not in known:
            message = f"'{metric}' cannot be had of {name}; there are {listed(known)}"
            raise LocatedError(("train", "keep_best"), message)
        if not self.data.valid:
            raise LocatedError(("train", "keep_best"), "is judged on the valid split: name its files in data.valid")

    def _directions(self, task: Task) -> dict[str, str]:
        """The metrics by which the task's model may be judged: highest or lowest."""
        has_groups = self.metrics.group_by is not None
        return directions(task.is_binary, has_groups, task.given is not None, self.metrics.extra_metrics)

    # ---- derived, read-only

    @property
    def keep_best(self) -> Judge | None:
        """What decides which checkpoint is the best."""
        if self.train.keep_best is None:
            return None
        name, _, metric = self.train.keep_best.partition("/")
        task = next(task for task in self.tasks if task.name == name)
        return Judge(name, metric, self._directions(task)[metric] == "highest")

    @property
    def bottom_arguments(self) -> dict[str, Any]:
        """What the bottom is told of the features."""
        dims = [self.tables[feature.table].dim for feature in self.features.sparse]
        return {"dense_dim": len(self.features.dense), "embedding_dims": dims}

    @property
    def head_arguments(self) -> dict[str, Any]:
        """What the head is told of the tasks."""
        names = [task.name for task in self.tasks]
        parents = [None if task.given is None else names.index(task.given) for task in self.tasks]
        rates = [task.negative_sampling_rate for task in self.tasks]
        return {"tasks": names, "parents": parents, "sampling_rates": rates}

    @property
    def label_columns(self) -> dict[str, LabelColumn]:
        """The columns that labels, spaces and weights need, each once, labels first."""
        return label_columns(self.tasks)

    @property
    def is_conditional(self) -> bool:
        """Whether a child is trained on the rows where its parent is 1 only."""
        return self._meta_head().conditional

    def start(self, head: Head) -> None:
        """Set the biases of the head's towers so that each task starts at its prior, and at 0 without one.

        Raises ValueError for a head without biases, and for a child whose prior is not below its parent's.
        """
        biases = [0.0 if task.prior is None else self._bias(task, head) for task in self.tasks]
        head.set_bias(biases)

    def _bias(self, task: Task, head: Head) -> float:
        """Of files with sampled negatives the log-odds are too high: a head adds that in training alone."""
        assert task.prior is not None
        if task.given is None or not head.multiplies:
            return float(task.build().initial_value(task.prior)) + math.log(task.negative_sampling_rate)
        parent = next(other for other in self.tasks if other.name == task.given)
        if parent.prior is None or not task.prior < parent.prior:
            raise ValueError(f"the prior of '{task.name}' wants one of '{parent.name}' above it")
        return float(task.build().initial_value(task.prior / parent.prior))

    def _meta_head(self) -> Head:
        """The head without memory, for what it says of itself."""
        import torch

        with torch.device("meta"):
            head: Head = self.model.heads.build(**self.head_arguments, input_dim=1)
        return head

    def dump(self) -> dict[str, Any]:
        """Plain YAML types; `JobConfig.model_validate(job.dump()) == job`."""
        return self.model_dump(mode="json")
