"""Raw rows in, a prediction per task out: the artifact's program behind the transforms that training used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from mtlrec.config import FeaturesConfig
from mtlrec.data.block import Block
from mtlrec.data.features.columns import Columns
from mtlrec.data.features.row_errors import RawRowErrors
from mtlrec.data.loader import check_id_fingerprints
from mtlrec.data.sources.arrow_types import is_number, item_type
from mtlrec.errors import ArtifactError, DataError
from mtlrec.evaluation.fused_score import COLUMN
from mtlrec.evaluation.predict import calibrated
from mtlrec.io import one_line
from mtlrec.models.build import build_task_losses
from mtlrec.serving.manifest import MANIFEST, MODEL, SAMPLE, Manifest, input_specs
from mtlrec.serving.parity import differences
from mtlrec.serving.program import Function, arguments, head_output, loaded
from mtlrec.serving.rows import RawRows, arrow_column, columns_of, python_value

SAMPLE_TOLERANCE = 1e-5
"""Between the machine that exported and this one, which may add up in another order."""


@dataclass(frozen=True)
class Scores:
    """Of N rows. What could not be scored has NaN and a reason.

    predictions: by task [N] float32: p(task) over all impressions, a regression's value, a watch time in its label's
        unit; calibrated where the run was
    fused_score: [N] float64, or None where the run has none
    errors: by row
    """

    predictions: dict[str, np.ndarray]
    fused_score: np.ndarray | None
    errors: dict[int, str]

    def __len__(self) -> int:
        return len(next(iter(self.predictions.values())))

    def rows(self) -> Iterator[dict[str, Any]]:
        """As JSON has it: `{"click": 0.12, "fused_score": 0.3}`, or `{"error": "column 'age' ..."}`."""
        columns = dict(self.predictions) | ({} if self.fused_score is None else {COLUMN: self.fused_score})
        lists = {name: values.tolist() for name, values in columns.items()}
        for row in range(len(self)):
            reason = self.errors.get(row)
            yield {"error": reason} if reason else {name: values[row] for name, values in lists.items()}


class Predictor:
    """An artifact, loaded. Any number of threads may call `predict` at once; they take turns, each with all cores.

    Args:
        folder: what `mtlrec export` wrote. It holds compiled code: take it from whom you would take a program
        check: whether to hold its files against their checksums, and its sample against what the export saw; whether
            this machine has the instructions that it was compiled to is looked at in any case

    Raises ArtifactError where it cannot be used here.

    Example:
        >>> predictor = Predictor("artifact")                                                   # doctest: +SKIP
        >>> predictor.predict({"item_id": [3, 7]}, shared={"user_id": 17, "age": 31}).predictions  # doctest: +SKIP
        {'click': array([0.12, 0.08], dtype=float32), 'buy': array([0.01, 0.02], dtype=float32)}
    """

    def __init__(self, folder: Path | str, check: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.manifest.check_machine(self.folder)
        if check:
            self.manifest.check_files(self.folder)
        self.job = self.manifest.job_config(self.folder)
        self.columns = replace(
            Columns.of(self.job, with_labels=False), expected_fingerprints=self.manifest.id_fingerprints
        )
        self._losses = build_task_losses(self.job)
        self._check_job()
        self.device = torch.device(self.manifest.device)
        self._readers = self.columns.column_uses
        self.function = self._loaded()
        if check:
            self._check_sample()

    def predict(self, rows: RawRows, shared: Mapping[str, Any] | None = None) -> Scores:
        """Scores rows, each for itself: one that cannot be scored gets an error, the others their predictions.

        Args:
            rows: a dict of columns (lists or arrays, one value per row), an Arrow batch or table; columns that no
                feature reads are left aside
            shared: by column one value for all rows, those of the user to whom the rows are candidates

        Raises DataError where it is not known which value belongs to which row: columns of different lengths, a column
        given twice, ids among the rows whose weights are shared.
        """
        if not isinstance(shared, Mapping | None):
            raise DataError(f"shared: {type(shared).__name__} given; a dict of a value for each column is wanted")
        given, count = columns_of(rows, self._readers)
        common = {name: value for name, value in (shared or {}).items() if name in self._readers}
        self._check_division(given, common)
        row_errors = RawRowErrors(count)
        return self._scored(self._block(given, count, common, row_errors), row_errors)

    # ---- the parts

    def _check_job(self) -> None:
        """Raises where the manifest's job is not what the program was made of, or a vocabulary not that of training."""
        check_id_fingerprints(self.manifest.id_fingerprints, self.columns.vocabulary_fingerprints)
        outputs = [task.name for task in self.job.tasks]
        if input_specs(self.columns) != self.manifest.inputs or outputs != self.manifest.outputs[0].columns:
            raise ArtifactError(
                f"{self.folder / MANIFEST}: its job is not that of its program; copy the artifact again"
            )

    def _loaded(self) -> Function:
        path = self.folder / MODEL
        try:
            return loaded(path)
        except (RuntimeError, OSError) as error:
            made, here = self.manifest.versions.get("torch"), torch.__version__
            reason = one_line(error)
            raise ArtifactError(f"{path}: cannot be loaded ({reason}); torch {made} made it, {here} is here") from None

    def _check_division(self, given: Mapping[str, Any], common: Mapping[str, Any]) -> None:
        for name in common:
            if name in given:
                raise DataError(f"rows: column '{name}' is in the rows and shared; give it in one of them")
        for sparse in self.columns.features.sparse:
            ids, weights = sparse.source, sparse.weight_column
            if weights is not None and (ids in common) != (weights in common) and weights in {**given, **common}:
                raise DataError(f"rows: '{weights}' weighs '{ids}'; give both in the rows, or both shared")

    def _block(
        self, given: Mapping[str, Any], count: int, common: Mapping[str, Any], row_errors: RawRowErrors
    ) -> Block:
        """Shared columns are transformed once, and their ids repeated."""
        own, once = _divided(self.columns.features, common)
        if not once.names:
            return self._converted(own, given, count, row_errors)
        of_user = RawRowErrors(1)
        shared = self._converted(once, {name: _alone(value) for name, value in common.items()}, 1, of_user)
        if of_user.bad_mask is not None:
            row_errors.leave_out_all(f"shared {of_user.reasons[0]}")
        rows = self._converted(own, given, count, row_errors)
        block = _merged(self.columns.features, own, rows, once, shared.take(np.zeros(count, np.int32)))
        return block if row_errors.bad_mask is None else block.blank(row_errors.bad_mask, {})

    def _converted(
        self, features: FeaturesConfig, given: Mapping[str, Any], rows: int, row_errors: RawRowErrors
    ) -> Block:
        """These features of the rows."""
        columns = {}
        for name in features.columns:
            column_uses = self._readers[name]
            if name in given:
                column = arrow_column(given[name], rows, name, column_uses, row_errors)
                columns[name] = as_logged(column, self.manifest.float_columns.get(name))
            else:
                row_errors.leave_out_all(f"column '{name}' is missing, which {column_uses[0].key} reads")
                columns[name] = pa.chunked_array([pa.nulls(rows)])
        table = pa.table(columns) if columns else pa.table({"": pa.nulls(rows)})
        return replace(self.columns, features=features).converted(table, row_errors)

    def _scored(self, block: Block, row_errors: RawRowErrors) -> Scores:
        names, score = [task.name for task in self.job.tasks], self.manifest.fused_score
        if not len(block):
            nothing = np.zeros(0, np.float32)
            return Scores(dict.fromkeys(names, nothing), None if score is None else np.zeros(0), {})
        batch = self.columns.batch(block).to(self.device)
        outputs = head_output(self.function(*arguments(batch)))
        predictions = calibrated(outputs, self.job, self._losses, self.manifest.calibration)
        fused = None if score is None else score.product(outputs, self.job, self._losses).cpu().numpy()
        values = predictions.cpu().numpy()
        self._find_overflows(values, fused, row_errors)
        if row_errors.bad_mask is not None:
            values[row_errors.bad_mask] = np.nan
            if fused is not None:
                fused[row_errors.bad_mask] = np.nan
        by_task = {name: np.ascontiguousarray(values[:, slot]) for slot, name in enumerate(names)}
        return Scores(by_task, fused, dict(sorted(row_errors.reasons.items())))

    def _find_overflows(self, values: np.ndarray, fused: np.ndarray | None, row_errors: RawRowErrors) -> None:
        """What is not finite in spite of inputs in order."""
        every = values if fused is None else np.column_stack([values, fused])
        overflown = ~np.isfinite(every).all(axis=1)
        for row in np.flatnonzero(overflown).tolist():
            row_errors.reasons.setdefault(row, "the model's output is not finite; are this row's numbers in range?")
        if overflown.any():
            row_errors.bad_mask = overflown if row_errors.bad_mask is None else row_errors.bad_mask | overflown

    def _check_sample(self) -> None:
        """Raises ArtifactError where the sample's rows do not give what the export saw."""
        given, count = columns_of(pq.read_table(self.folder / SAMPLE), self._readers)
        row_errors = RawRowErrors(count)
        batch = self.columns.batch(self._converted(self.columns.features, given, count, row_errors))
        for row, reason in row_errors.reasons.items():
            raise ArtifactError(f"{self.folder / SAMPLE}: row {row}: {reason}; export it again")
        seen = self.manifest.sample.predictions
        if [len(row) for row in seen] != [len(self.job.tasks)] * count:
            raise ArtifactError(f"{self.folder}: its sample has {count} rows, its manifest others; export it again")
        expected = torch.tensor(seen)
        found = self.function(*arguments(batch.to(self.device)))["predictions"].cpu()
        apart = float(differences(found, expected).max())
        if not apart <= SAMPLE_TOLERANCE:
            raise ArtifactError(f"{self.folder}: its sample's predictions are {apart:.2g} off here; export it again")


def as_logged(column: pa.ChunkedArray, kind: str | None) -> pa.ChunkedArray:
    """Numbers, or lists of them, with the digits that the files had: 0.7 is one number as float32 and another as
    float64, and a boundary may lie between them."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    item = item_type(column.type)
    if kind is None or not is_number(item):
        return column
    logged = pa.type_for_alias(kind)
    has_lists = item != column.type
    if not pa.types.is_floating(item):  # Arrow has no way from an integer or a decimal to float16
        column = pc.cast(column, pa.list_(pa.float64()) if has_lists else pa.float64(), safe=False)
    return pc.cast(column, pa.list_(logged) if has_lists else logged, safe=False)


def _divided(features: FeaturesConfig, common: Mapping[str, Any]) -> tuple[FeaturesConfig, FeaturesConfig]:
    """Those of the rows, and those that are shared."""

    def some(is_shared: bool) -> FeaturesConfig:
        return FeaturesConfig.model_construct(  # which may be none
            dense=[one for one in features.dense if (one.source in common) == is_shared],
            sparse=[one for one in features.sparse if (one.source in common) == is_shared],
        )

    return some(False), some(True)


def _alone(value: Any) -> list[Any]:
    """A column of one row."""
    return [python_value(value) if isinstance(value, pa.Scalar | pa.Array | pa.ChunkedArray) else value]


def _merged(features: FeaturesConfig, own: FeaturesConfig, rows: Block, once: FeaturesConfig, shared: Block) -> Block:
    """One block of all features, in the config's order."""
    parts = ((own, rows), (once, shared))
    dense = {one.name: column for of, block in parts for one, column in zip(of.dense, block.dense, strict=True)}
    sparse = {one.name: ids for of, block in parts for one, ids in zip(of.sparse, block.ids, strict=True)}
    return replace(
        rows,
        dense=[dense[one.name] for one in features.dense],
        ids=[sparse[one.name] for one in features.sparse],
        row_mask=None,
    )
