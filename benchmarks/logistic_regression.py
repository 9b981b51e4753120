"""The yardstick: a logistic regression per task on a prepared data set, and how far it is from the Bayes classifier.

    python benchmarks/logistic_regression.py data/census_income
    python benchmarks/logistic_regression.py data/feed --labels click,like --space like:click --max-train-rows 500000

A multi-task network that does not beat these figures is broken; on a synthetic feed, whose true probabilities are
known, the last column says which share of the way from 0.5 to the Bayes AUC the linear model goes.
Ids are one-hot, lists are bags divided by the root of their length, dense columns are standardized on the train split
(log1p first where asked). Trained on train/*.parquet, measured on test/*.parquet; valid is not read.
"""

import argparse
import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped]
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mtlrec.config.tasks import MIN_TEST_POSITIVES


@dataclass
class Encoder:
    """Columns of a table to one CSR matrix; `fit` takes the sizes and the moments from the train split."""

    dense: list[str]
    sparse: list[str]
    lists: list[str]
    log1p: list[str]
    sizes: dict[str, int] = field(default_factory=dict)
    moments: dict[str, tuple[float, float]] = field(default_factory=dict)

    def fit(self, train: pa.Table) -> None:
        """Set the width of every block of ids (largest id + 1) and each dense column's mean and deviation."""
        for name in [*self.sparse, *self.lists]:
            ids = self._ids(train, name)
            self.sizes[name] = int(ids.max()) + 1 if len(ids) else 1
        for name in self.dense:
            values = self._values(train, name)
            self.moments[name] = (float(np.nanmean(values)), float(np.nanstd(values)) or 1.0)

    def transform(self, table: pa.Table) -> csr_matrix:
        """[rows, width] float32. An id not seen in fit has no column; a missing dense value is the mean."""
        blocks = []
        if self.dense:
            columns = []
            for name in self.dense:
                mean, deviation = self.moments[name]
                columns.append(np.nan_to_num((self._values(table, name) - mean) / deviation))
            blocks.append(csr_matrix(np.stack(columns, axis=1).astype(np.float32)))
        for name in self.sparse:
            blocks.append(self._one_hot(self._ids(table, name), np.arange(table.num_rows + 1), self.sizes[name]))
        for name in self.lists:
            ids, offsets = self._ids(table, name), np.concatenate([[0], np.cumsum(_lengths(table, name))])
            blocks.append(self._one_hot(ids, offsets, self.sizes[name]))
        return hstack(blocks, format="csr", dtype=np.float32)

    def _ids(self, table: pa.Table, name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = column.flatten()
        return column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)

    def _values(self, table: pa.Table, name: str) -> np.ndarray:
        values = table[name].to_numpy().astype(np.float64)
        return np.log1p(values) if name in self.log1p else values

    @staticmethod
    def _one_hot(ids: np.ndarray, offsets: np.ndarray, width: int) -> csr_matrix:
        lengths = np.diff(offsets)
        weights = np.repeat(1.0 / np.sqrt(np.maximum(lengths, 1)), lengths).astype(np.float32)
        weights[ids >= width] = 0.0  # unseen in train
        return csr_matrix((weights, np.minimum(ids, width - 1), offsets), shape=(len(lengths), width))


def _lengths(table: pa.Table, name: str) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy().astype(np.int64)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when done, 2 for a mistake in the arguments or the data."""
    args = _parser().parse_args(argv)
    try:
        results = run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(results) if args.json else _table(results))
    return 0


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result per label: rows, positives, AUC, and Bayes AUC and share where the truth is known."""
    columns = _columns(args)
    spaces = dict(pair.split(":", 1) for pair in args.space)
    unknown = sorted(set(spaces) - set(columns["labels"]))
    if unknown:
        raise ValueError(f"--space: {unknown[0]!r} is not among the labels {columns['labels']}")
    needed = [*columns["dense"], *columns["sparse"], *columns["lists"], *columns["labels"], *spaces.values()]
    train = _read(args.root, "train", needed, args.max_train_rows)
    truths = [f"true_{name}" for name in [*columns["labels"], *spaces.values()]]
    test = _read(args.root, "test", needed, args.max_test_rows, optional=truths)
    encoder = Encoder(columns["dense"], columns["sparse"], columns["lists"], args.log1p)
    encoder.fit(train)
    x_train, x_test = encoder.transform(train), encoder.transform(test)
    results = []
    for label in columns["labels"]:
        chosen = _rows(train, label, spaces.get(label)), _rows(test, label, spaces.get(label))
        results.append(_fit_one(label, spaces.get(label), x_train, x_test, train, test, chosen, args))
    return results


def _fit_one(
    label: str,
    space: str | None,
    x_train: csr_matrix,
    x_test: csr_matrix,
    train: pa.Table,
    test: pa.Table,
    chosen: tuple[np.ndarray, np.ndarray],
    args: argparse.Namespace,
) -> dict[str, Any]:
    y_train, y_test = (
        t[label].to_numpy()[rows].astype(np.int64) for t, rows in zip((train, test), chosen, strict=True)
    )
    result: dict[str, Any] = {"label": label, "space": space, "train_rows": len(y_train), "test_rows": len(y_test)}
    result["test_positives"] = int(y_test.sum())
    result["decidable"] = result["test_positives"] >= MIN_TEST_POSITIVES
    for split, y in (("train", y_train), ("test", y_test)):
        if len(np.unique(y)) != 2 or y.min() != 0 or y.max() != 1:
            raise ValueError(
                f"{label}: its {split} rows must hold both 0 and 1, and nothing else; leave it out of --labels"
            )
    model = LogisticRegression(C=args.inverse_regularisation, max_iter=args.max_iterations, tol=args.tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported with the result instead
        model.fit(x_train[chosen[0]], y_train)
    result["auc"] = float(roc_auc_score(y_test, model.decision_function(x_test[chosen[1]])))
    result["converged"] = int(model.n_iter_[0]) < args.max_iterations
    truth = f"true_{label}"
    if truth in test.column_names and (space is None or f"true_{space}" in test.column_names):
        p = test[truth].to_numpy()[chosen[1]]
        if space is not None:
            p = p / test[f"true_{space}"].to_numpy()[chosen[1]]  # p(label) is marginal: within the space, conditional
        result["bayes_auc"] = float(roc_auc_score(y_test, p))
        result["share_of_bayes"] = (result["auc"] - 0.5) / (result["bayes_auc"] - 0.5)
    return result


def _rows(table: pa.Table, label: str, space: str | None) -> np.ndarray:
    known = table[label].is_valid().to_numpy()
    return np.flatnonzero(known if space is None else known & (table[space].to_numpy() == 1))


def _columns(args: argparse.Namespace) -> dict[str, list[str]]:
    """The columns named on the command line, the others from schema.json; labels: the binary ones."""
    chosen = {kind: getattr(args, kind) for kind in ("dense", "sparse", "lists", "labels")}
    if any(value is None for value in chosen.values()):
        path = args.root / "schema.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing; name --dense, --sparse, --lists and --labels, '' for none")
        schema = json.loads(path.read_text(encoding="utf-8"))
        schema["labels"] = [name for name, entry in schema["labels"].items() if entry["kind"] == "binary"]
        chosen = {kind: list(schema[kind]) if value is None else value for kind, value in chosen.items()}
    if not (chosen["dense"] or chosen["sparse"] or chosen["lists"]):
        raise ValueError("no input columns; name some with --dense, --sparse or --lists")
    return chosen


def _read(root: Path, split: str, columns: list[str], limit: int | None, optional: list[str] | None = None) -> pa.Table:
    # Parts in the order of their number: "part-10" comes after "part-9", so that --max-train-rows takes the first rows.
    paths = sorted((root / split).glob("*.parquet"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise ValueError(f"{root / split} holds no Parquet files; prepare the data set first")
    names = pq.read_schema(paths[0]).names
    absent = [name for name in columns if name not in names]
    if absent:
        raise ValueError(f"{paths[0]}: no column {absent[0]!r}; it has {', '.join(names)}")
    wanted = list(dict.fromkeys([*columns, *[name for name in optional or [] if name in names]]))
    data = ds.dataset(paths)
    return data.to_table(columns=wanted) if limit is None else data.head(limit, columns=wanted)


def _table(results: list[dict[str, Any]]) -> str:
    head = f"{'label':<16}{'space':<12}{'train rows':>12}{'test rows':>11}{'positives':>11}"
    lines = [f"{head}{'AUC':>9}{'Bayes':>9}{'share':>8}"]
    for r in results:
        bayes = f"{r['bayes_auc']:>9.4f}{r['share_of_bayes']:>8.1%}" if "bayes_auc" in r else f"{'-':>9}{'-':>8}"
        note = "" if r["decidable"] else f"  undecidable: under {MIN_TEST_POSITIVES} positives"
        note += "" if r["converged"] else "  not converged: see --max-iterations"
        counts = f"{r['train_rows']:>12,}{r['test_rows']:>11,}{r['test_positives']:>11,}"
        lines.append(f"{r['label']:<16}{r['space'] or 'all rows':<12}{counts}{r['auc']:>9.4f}{bayes}{note}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/, test/ and, for the defaults, schema.json")
    for kind in ("dense", "sparse", "lists", "labels"):
        parser.add_argument(f"--{kind}", type=names, metavar="A,B", help="columns; default: schema.json's")
    parser.add_argument("--space", type=names, default=[], metavar="LABEL:COLUMN", help="only rows where COLUMN is 1")
    parser.add_argument("--log1p", type=names, default=[], metavar="A,B", help="dense columns to take log1p of first")
    parser.add_argument("--max-train-rows", type=int, help="only the first rows of train")
    parser.add_argument("--max-test-rows", type=int, help="only the first rows of test")
    parser.add_argument("--max-iterations", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the gradient, scikit-learn's tol")
    parser.add_argument("--inverse-regularisation", type=float, default=1.0, help="scikit-learn's C")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
