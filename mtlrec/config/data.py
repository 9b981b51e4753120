"""Where the rows are, and what a model reads of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from mtlrec.config.base import Name, Positive, Strict


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


class MetricsConfig(Strict):
    """What an evaluation reports beside the usual metrics."""

    group_by: str | None = Field(None, description="a column, a user's id say; adds the AUC within each group (GAUC)")
