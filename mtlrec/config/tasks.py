"""The objectives and the graph between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from mtlrec.config import expression
from mtlrec.config.base import Name, NonNegative, listed
from mtlrec.config.kinds.family import Family, PartConfig, located
from mtlrec.errors import LocatedError
from mtlrec.losses import LOSSES, TaskLoss
from mtlrec.losses.task_loss import LabelRule

MIN_TEST_POSITIVES = 200
"""A binary task with fewer positives in the test split is reported and not compared: the standard error of its AUC is
near 0.02, too wide to tell two models apart."""


class Task(PartConfig):
    """One objective. `given`: the task it follows in the funnel. `space`: which rows it is trained and measured on.

    Further keys are the arguments of the kind's loss.
    """

    kind: str = "binary"
    name: Name
    label: str = Field(description="its column; rows where it is null leave the task's space")
    given: Name | None = None
    space: str | None = Field(None, description="tasks and columns under and, or, not, and comparisons with numbers")
    weight: NonNegative = 1.0
    prior: float | None = Field(
        None,
        description="mean of its label in the training files, where its tower starts; of a child over all rows",
    )
    sample_weight: str | None = Field(None, description="a column of weights >= 0; null leaves the task's space")
    negative_sampling_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="the share of the rows without it that the training files kept; its predictions and its children's "
        "are corrected for that, other tasks' are not: give those a sample_weight",
    )
    features: list[Name] | None = Field(None, description="what this task may see; none named: everything")

    @property
    def is_binary(self) -> bool:
        """Whether it predicts the probability of a yes."""
        return bool(self.part_class.is_probability)

    @property
    def condition(self) -> expression.Tree | None:
        return None if self.space is None else expression.parse(self.space)


TASK = Family("task loss", LOSSES, TaskLoss, default="binary", section=Task)


def check_options(tasks: Sequence[Task]) -> None:
    """Raises LocatedError for an option that a task of this kind has no use for, or one that its loss refuses."""
    for index, task in enumerate(tasks):
        task.check(("tasks", index))
        if task.prior is not None:
            with located(("tasks", index, "prior")):
                task.build().initial_value(task.prior)
        for option in ("given", "negative_sampling_rate"):
            if not task.is_binary and getattr(task, option) != Task.model_fields[option].default:
                raise LocatedError(("tasks", index, option), f"is for binary tasks; '{task.name}' is {task.kind}")


def check_graph(tasks: Sequence[Task]) -> None:
    """Raises LocatedError for an edge that leads nowhere, to itself or between other than binary tasks."""
    by_name = {task.name: task for task in tasks}
    for index, task in enumerate(tasks):
        path = ("tasks", index, "given")
        if task.given is not None and task.given not in by_name:
            raise LocatedError(path, f"no such task; tasks are {listed(by_name)}")
        if task.given is not None and not by_name[task.given].is_binary:
            kind = by_name[task.given].kind
            raise LocatedError(path, f"'{task.given}' is {kind}; a parent is binary. To train on some rows take space")
        _check_no_cycle(task, path, by_name)
        if task.negative_sampling_rate < 1 and task.given is not None:
            message = (
                f"leaving out negatives of '{task.name}' changes the rows that '{task.given}' is learned from too; "
                "keep all rows, or give those kept a sample_weight of 1 / rate"
            )
            raise LocatedError(("tasks", index, "negative_sampling_rate"), message)


def _check_no_cycle(task: Task, path: tuple[str | int, ...], by_name: Mapping[str, Task]) -> None:
    walked, parent = [task.name], task.given
    while parent is not None:
        if parent in walked:
            raise LocatedError(path, f"the task graph has a cycle: {' -> '.join([*walked, parent])}")
        walked.append(parent)
        parent = by_name[parent].given if parent in by_name else None


def check_columns(tasks: Sequence[Task]) -> None:
    """Raises LocatedError where a label, a space or a weight asks of a column what it is not."""
    by_name = {task.name: task for task in tasks}
    numbers = {task.label: task.kind for task in tasks if not task.is_binary}
    for index, task in enumerate(tasks):
        if task.is_binary and task.label in numbers:
            message = f"is the label of a {numbers[task.label]} task too, not 0 or 1"
            raise LocatedError(("tasks", index, "label"), message)
        if task.sample_weight in (task.name, task.label):
            message = "is the task's own label: one kind of row would be left"
            raise LocatedError(("tasks", index, "sample_weight"), message)
        path = ("tasks", index, "space")
        try:
            condition = task.condition
        except ValueError as error:
            raise LocatedError(path, str(error)) from None
        if condition is None:
            continue
        own = {task.name, task.label} & set(expression.names(condition))
        if own and task.is_binary:
            raise LocatedError(path, f"reads '{own.pop()}', the task itself: it would see one kind of label only")
        for name in sorted(expression.flags(condition)):
            kind = by_name[name].kind if name in by_name else numbers.get(name, "binary")
            if kind != "binary":
                raise LocatedError(path, f"'{name}' is no yes or no but {kind}; compare it: {name} > 0")


class LabelColumn(NamedTuple):
    """What a column may hold, and the key of the job that reads it first."""

    rule: LabelRule
    key: str


def label_columns(tasks: Sequence[Task]) -> dict[str, LabelColumn]:
    """The columns that labels, spaces and weights need, each once, labels first; the stricter rule counts."""
    names = {task.name for task in tasks}
    needs = [(task.label, LabelColumn(task.part_class.label_rule, f"tasks.{task.name}.label")) for task in tasks]
    for task in tasks:
        condition = task.condition
        if condition is not None:
            flags = expression.flags(condition)
            for column in expression.names(condition):
                if column not in names:
                    rule: LabelRule = "flag" if column in flags else "number"
                    needs.append((column, LabelColumn(rule, f"tasks.{task.name}.space")))
    for task in tasks:
        if task.sample_weight is not None:
            needs.append((task.sample_weight, LabelColumn("non_negative", f"tasks.{task.name}.sample_weight")))
    strictness: list[LabelRule] = ["number", "non_negative", "flag"]
    columns: dict[str, LabelColumn] = {}
    for column, need in needs:
        before = columns.setdefault(column, need)
        columns[column] = before._replace(rule=max(before.rule, need.rule, key=strictness.index))
    return columns
