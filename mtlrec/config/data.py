"""Where the rows are, and what a model reads of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, field_validator, model_validator

from mtlrec.config.base import Name, Positive, Strict, without_secrets
from mtlrec.config.kinds.family import Family
from mtlrec.errors import LocatedError
from mtlrec.metrics import METRICS, Metric

METRIC = Family("metric", {}, Metric)
Column = Annotated[str, StringConstraints(min_length=1)]
DenseStep = Literal["none", "clip", "log1p", "standardize"]


class DataConfig(Strict):
    """Where the rows are. `train`, `valid` and `test` are files, globs or folders below `root`."""

    root: str = Field(".", description="a folder, or a URI: s3://bucket/logs, gs://, hdfs://, or what fsspec opens")
    train: Annotated[list[str], Field(min_length=1)] = ["train/*.parquet"]
    valid: list[str] = ["valid/*.parquet"]
    test: list[str] = ["test/*.parquet"]
    batch_size: PositiveInt = Field(1024, description="rows per rank and step")
    shuffle: Literal["none", "row_group", "rows"] = "rows"
    shuffle_buffer: PositiveInt = Field(131_072, description="rows that are shuffled among each other")
    prefetch: PositiveInt = Field(4, description="batches made ahead by the loader's thread")
    read_ahead: PositiveInt = Field(
        1, description="row groups read ahead, each on a thread; more for a store over the network, and more memory"
    )
    retries: NonNegativeInt = Field(3, description="how often a read over the network is tried again")
    on_error: Literal["fail", "skip_file", "skip_row"] = Field(
        "fail",
        description="what a file that cannot be read or a bad value costs: the job, the file or row group, or the row",
    )
    max_skipped: NonNegativeInt = Field(10_000, description="rows per rank and epoch; with more the job fails")
    statistics: str | None = Field(
        None, description="what `mtlrec prepare stats` wrote: means, deviations and boundaries the features leave open"
    )
    keys: list[str] = Field([], description="columns that `predict` carries over; empty: all of them")

    @model_validator(mode="after")
    def _keeps_no_secret(self) -> DataConfig:
        if without_secrets(self.root) != self.root:
            raise LocatedError(
                ("root",),
                "has a password in it, and a run keeps its job; give credentials by the environment or the store's own "
                "settings, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        return self


class TableConfig(Strict):
    rows: PositiveInt
    dim: PositiveInt = Field(multiple_of=4, description="FBGEMM wants multiples of 4")
    lr: Positive | None = Field(None, description="learning rate of this table; its schedule is that of optim.sparse")
    init_std: Positive = Field(0.05, description="standard deviation of the normal distribution it is drawn from")


class DenseFeature(Strict):
    """A numeric column and its transforms, in their order; nulls become 0 after the last.

    clip keeps values within `min` and `max`, log1p takes log(1 + x), standardize (x - mean) / std.
    """

    name: Name
    column: Column | None = Field(None, description="where it is not the feature's name")
    transform: DenseStep | Annotated[list[DenseStep], Field(min_length=1)] = "none"
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: Positive | None = None

    @property
    def source(self) -> str:
        return self.column or self.name

    @property
    def steps(self) -> list[DenseStep]:
        return self.transform if isinstance(self.transform, list) else [self.transform]

    @model_validator(mode="after")
    def _numbers_belong_to_their_transform(self) -> DenseFeature:
        for step, names in (("clip", ("min", "max")), ("standardize", ("mean", "std"))):
            given = [name for name in names if getattr(self, name) is not None]
            if given and step not in self.steps:
                raise LocatedError((given[0],), f"is for transform {step}")
        if "clip" in self.steps and self.min is None and self.max is None:
            raise ValueError("transform clip needs min, max or both")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise LocatedError(("min",), f"is not below max = {self.max:g}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("transform standardize needs both mean and std")
        return self


class SparseFeature(Strict):
    """A column of ids, whole numbers or text, one per row or a list of them; or of numbers that are made ids.

    none takes ids as they are, 0 to the table's rows - 1; modulo folds them into the table; hash takes XXH64 with
    `seed`, folded likewise; vocabulary looks them up in a file of one value per line, row 0 for what is not there, row
    n for line n; bucketize counts the `boundaries` at or below a number. Nulls and empty lists pool to a zero vector.
    Ids may have weights, in a list beside theirs or in structs with them (a map's fields are key and value).
    """

    name: Name
    column: Column | None = Field(None, description="where it is not the feature's name")
    table: Name = Field(
        "", description="one of `tables`, which features may share; or leave it out and give rows and dim"
    )
    rows: PositiveInt | None = Field(
        None, description="of a table of the feature's own, which is called like the feature"
    )
    dim: PositiveInt | None = Field(None, multiple_of=4, description="of its own table, as in `tables`")
    lr: Positive | None = Field(None, description="of its own table, as in `tables`")
    init_std: Positive | None = Field(None, description="of its own table, as in `tables`")
    pooling: Literal["sum", "mean"] = Field("sum", description="mean divides by the number of ids, weighted or not")
    transform: Literal["none", "modulo", "hash", "vocabulary", "bucketize"] = "none"
    seed: NonNegativeInt = Field(0, description="of hash")
    vocabulary: str | None = Field(None, description="the file, below data.root; a local one where it begins with /")
    boundaries: list[float] | None = Field(None, description="in rising order")
    weights: Column | None = Field(
        None, description="of the ids: a column of lists beside it, or COLUMN.FIELD where its lists are of structs"
    )
    max_length: PositiveInt | None = Field(None, description="longer lists keep their last max_length ids")
    too_long: Literal["keep_last", "error"] = Field("keep_last", description="whether a longer list is bad input")

    @property
    def source(self) -> str:
        return self.column or self.name

    @property
    def weight_field(self) -> str | None:
        """Of the column's structs."""
        prefix = f"{self.source}."
        return self.weights.removeprefix(prefix) if self.weights and self.weights.startswith(prefix) else None

    @property
    def weight_column(self) -> str | None:
        """Beside the ids' column."""
        return self.weights if self.weight_field is None else None

    @property
    def own_table(self) -> dict[str, Any]:
        """What the feature says of a table of its own, as keys of `tables`; empty where it names a table."""
        keys = ("rows", "dim", "lr", "init_std")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @model_validator(mode="after")
    def _has_one_table(self) -> SparseFeature:
        if self.table and self.own_table:
            key = next(iter(self.own_table))
            raise LocatedError((key,), f"belongs to tables.{self.table}, which the feature names; give it there")
        for key in ("rows", "dim"):
            if not self.table and key not in self.own_table:
                message = "is missing: give rows and dim for a table of the feature's own, or table: NAME of `tables`"
                raise LocatedError((key,), message)
        return self

    @model_validator(mode="after")
    def _options_belong_to_their_transform(self) -> SparseFeature:
        for option, step in (("seed", "hash"), ("vocabulary", "vocabulary"), ("boundaries", "bucketize")):
            if getattr(self, option) and self.transform != step:
                raise LocatedError((option,), f"is for transform {step}")
        if self.transform == "vocabulary" and self.vocabulary is None:
            raise ValueError("transform vocabulary needs a file: vocabulary: words.txt")
        if self.boundaries is not None and any(low >= high for low, high in pairwise(self.boundaries)):
            raise LocatedError(("boundaries",), "do not rise")
        if self.too_long == "error" and self.max_length is None:
            raise LocatedError(("too_long",), "is for max_length")
        return self


class Collection(NamedTuple):
    """Features that are looked up together, in the config's order.

    Attributes:
        features: their names
        places: their indices in `features.sparse`
        tables: that they read, each once
        is_weighted: whether all their ids have weights, 1 where a feature has none
    """

    features: list[str]
    places: list[int]
    tables: list[str]
    is_weighted: bool


class FeaturesConfig(Strict):
    dense: list[DenseFeature] = []
    sparse: Annotated[list[SparseFeature], Field(min_length=1)]

    @property
    def names(self) -> list[str]:
        return [dense.name for dense in self.dense] + [sparse.name for sparse in self.sparse]

    @property
    def columns(self) -> list[str]:
        """What is read of a file, each once."""
        weights = [sparse.weight_column for sparse in self.sparse if sparse.weight_column is not None]
        sources = [dense.source for dense in self.dense] + [sparse.source for sparse in self.sparse]
        return list(dict.fromkeys([*sources, *weights]))

    @property
    def collections(self) -> dict[str, Collection]:
        """The sparse features by what looks them up; a collection without features does not exist.

        bags: tables whose features have no weights. weighted_bags: tables that serve a feature with weights. A table
        is in one collection, with all its features.
        """
        weighted_tables = {sparse.table for sparse in self.sparse if sparse.weights is not None}
        collections = {}
        for name, is_weighted in (("bags", False), ("weighted_bags", True)):
            places = [i for i, sparse in enumerate(self.sparse) if (sparse.table in weighted_tables) == is_weighted]
            if places:
                names = [self.sparse[i].name for i in places]
                tables = list(dict.fromkeys(self.sparse[i].table for i in places))
                collections[name] = Collection(names, places, tables, is_weighted)
        return collections


class MetricsConfig(Strict):
    """What an evaluation reports beside the usual metrics."""

    group_by: str | None = Field(None, description="a column, a user's id say; adds the AUC within each group (GAUC)")
    extra: list[str] = Field([], description="metrics of your own, as package.module:Class")

    @field_validator("extra")
    @classmethod
    def _are_metrics(cls, extra: list[str]) -> list[str]:
        names = [*METRICS]
        for index, path in enumerate(extra):
            metric = METRIC.class_of(path)
            names.append(metric.name)
            if names.count(metric.name) > 1:
                raise LocatedError((index,), f"there is a metric called {metric.name} already; call yours otherwise")
        return extra

    @property
    def extra_metrics(self) -> list[type[Metric]]:
        return [METRIC.class_of(path) for path in self.extra]
