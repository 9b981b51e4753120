"""Census-Income (KDD): three binary tasks on 99,762 or 299,285 people, the data set of the MMoE, PLE and AdaTT papers.

The publisher's file (UCI data set 117) becomes Parquet with a random split by rows:

    tasks    income (over 50,000 dollars), never_married, college (an associate degree or more)
    dense    seven amounts and counts, as float32
    sparse   every other column, as ids 1..n by sorted value over the train split, 0 = missing or unseen

The columns that the tasks are made of (income_50k, marital_stat, education) are no inputs and are dropped;
`instance_weight` (how many people a row stands for) is kept as a key column and is never an input either.
The papers train on the publisher's training half and test on its test half; here all rows found are pooled and split
2/3, 1/6, 1/6, so absolute figures do not compare with the papers' unless both halves are given, and then only nearly.
"""

import gzip
import io
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mtlrec.datasets import writing
from mtlrec.errors import DataError
from mtlrec.io import one_line

URL = "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip"
# The order of census-income.names; the files carry no header.
_HEADER = (
    "age class_worker det_ind_code det_occ_code education wage_per_hour hs_college marital_stat major_ind_code "
    "major_occ_code race hisp_origin sex union_member unemp_reason full_or_part_emp capital_gains capital_losses "
    "stock_dividends tax_filer_stat region_prev_res state_prev_res det_hh_fam_stat det_hh_summ instance_weight "
    "mig_chg_msa mig_chg_reg mig_move_reg mig_same mig_prev_sunbelt num_emp fam_under_18 country_father country_mother "
    "country_self citizenship own_or_self vet_question vet_benefits weeks_worked year income_50k"
)
COLUMNS = _HEADER.split()
DENSE = ["age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends", "num_emp", "weeks_worked"]
TASK_SOURCES = ["income_50k", "marital_stat", "education"]
SPARSE = [name for name in COLUMNS if name not in [*DENSE, *TASK_SOURCES, "instance_weight"]]
COLLEGE = [
    "Associates degree-academic program",
    "Associates degree-occup /vocational",
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
]
MISSING = ["?", "Not in universe"]


def prepare(source: Path | None, out: Path, seed: int = 0) -> writing.Schema:
    """Write the Parquet data set to `out`; returns the content of its schema.json.

    Args:
        source: the publisher's `census-income.data` or `census-income.test` (plain or .gz), or a folder with one or
            both (then data comes first in `row_id`); None downloads both from UCI.
        out: the folder to write to.
        seed: of the random split.

    Raises:
        DataError: nothing found at `source`, not the publisher's format (names file and row), or no download.

    Source: https://archive.ics.uci.edu/dataset/117 ; Census-Income (KDD), 2000, doi:10.24432/C5N30T.
    """
    contents = _download() if source is None else {path.name: path.read_bytes() for path in _find(Path(source))}
    raw = pa.concat_tables([_read(name, content) for name, content in contents.items()])
    writing.prepare_folder(out)
    return _write(raw, out, seed, list(contents))


def _write(raw: pa.Table, out: Path, seed: int, sources: list[str]) -> writing.Schema:
    table = _columns(raw)
    held_out = table.num_rows // 6
    # Rows stay in random order within a split: the file has none, and a reader that does not shuffle loses nothing.
    order = np.random.default_rng(seed).permutation(table.num_rows)
    parts = np.split(order, [table.num_rows - 2 * held_out, table.num_rows - held_out])
    splits = {split: table.take(rows) for split, rows in zip(writing.SPLITS, parts, strict=True)}

    vocabularies = {name: writing.vocabulary(splits["train"][name]) for name in SPARSE}
    for split, rows in splits.items():
        for name, values in vocabularies.items():
            rows = rows.set_column(rows.column_names.index(name), name, writing.encode(rows[name], values))
        splits[split] = rows
        writing.write_split(out, split, rows)

    labels = {name: writing.binary_label(splits, name) for name in ("income", "never_married", "college")}
    schema: writing.Schema = {
        "dataset": "census_income",
        "citation": "Census-Income (KDD), UCI Machine Learning Repository, 2000, doi:10.24432/C5N30T",
        "license": "CC BY 4.0",
        "source": {"files": sources, "rows": table.num_rows},
        "split": {"kind": "random", "seed": seed, "fractions": ["2/3", "1/6", "1/6"]},
        "rows": writing.row_counts(splits),
        "keys": ["row_id", "instance_weight"],
        "dense": writing.dense_statistics(splits["train"], DENSE),
        "sparse": {name: {"rows": len(values) + 1} for name, values in vocabularies.items()},
        "lists": {},
        "labels": labels,
        "undecidable": writing.undecidable(labels),
    }
    ids = {name: [None, *values.to_pylist()] for name, values in vocabularies.items()}
    writing.write_json(out / "vocabularies.json", ids)
    writing.write_json(out / "schema.json", schema)
    return schema


def _columns(raw: pa.Table) -> pa.Table:
    """Keys, dense, sparse (still text, null = missing) and labels, in the order they are written."""
    data: dict[str, pa.Array | pa.ChunkedArray] = {
        "row_id": pa.array(np.arange(raw.num_rows, dtype=np.int64)),
        "instance_weight": raw["instance_weight"].cast(pa.float32()),
    }
    data |= {name: raw[name].cast(pa.float32()) for name in DENSE}
    missing = pa.array(MISSING)
    data |= {name: pc.if_else(pc.is_in(raw[name], missing), None, raw[name]) for name in SPARSE}
    data["income"] = pc.equal(raw["income_50k"], "50000+.").cast(pa.int8())
    data["never_married"] = pc.equal(raw["marital_stat"], "Never married").cast(pa.int8())
    data["college"] = pc.is_in(raw["education"], pa.array(COLLEGE)).cast(pa.int8())
    return pa.table(data)


def _read(name: str, content: bytes) -> pa.Table:
    """One of the publisher's files as a table of stripped text, its numbers as float64."""
    try:
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        numbers = {column: pa.float64() for column in [*DENSE, "instance_weight"]}
        table = pa_csv.read_csv(
            io.BytesIO(text),
            read_options=pa_csv.ReadOptions(column_names=COLUMNS),
            # Quotes have no meaning in these files, and no value is null to the reader: "?" is handled above.
            parse_options=pa_csv.ParseOptions(quote_char=False),
            convert_options=pa_csv.ConvertOptions(
                column_types={column: numbers.get(column, pa.string()) for column in COLUMNS},
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, OSError, EOFError, zlib.error) as error:
        message = one_line(error)
        raise DataError(f"{name}: not UCI's Census-Income format ({message}); give the publisher's file") from error
    strip = [c for c in COLUMNS if table.schema.field(c).type == pa.string()]
    for column in strip:
        table = table.set_column(table.column_names.index(column), column, pc.utf8_trim_whitespace(table[column]))
    income = table["income_50k"]
    known = pc.is_in(income, pa.array(["50000+.", "- 50000."])).to_numpy()
    if not known.all():
        row = int(np.argmin(known))
        raise DataError(
            f"{name}: row {row + 1}, income_50k: {income[row].as_py()!r} is neither '50000+.' nor '- 50000.'; "
            "give the publisher's file"
        )
    return table


def _find(source: Path) -> list[Path]:
    """The publisher's files at `source`, data before test; a plain file is preferred to its .gz."""
    if source.is_file():
        return [source]
    found = []
    for half in ("data", "test"):
        candidates = [source / f"census-income.{half}{suffix}" for suffix in ("", ".gz")]
        found += [path for path in candidates if path.is_file()][:1]
    if not found:
        raise DataError(
            f"source: no census-income.data[.gz] or census-income.test[.gz] at {source}; get them from {URL}"
        )
    return found


def _download() -> dict[str, bytes]:
    """The publisher's two files by name, read from the archive in memory: nothing is extracted to disk."""
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            archive = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"source: {URL} cannot be downloaded ({error}); unpack it by hand and name its folder with --source"
        ) from error
    return _unpack(archive)


def _unpack(archive: bytes) -> dict[str, bytes]:
    """The two halves out of UCI's zip, where they lie as they are, gzipped, or in a tar file of their own."""
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as outer:
            for name in outer.namelist():
                if name.endswith((".tar.gz", ".tgz")):
                    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as inner:
                        for member in inner.getmembers():
                            file = inner.extractfile(member) if member.isfile() else None
                            if file is not None:
                                members[Path(member.name).name] = file.read()
                elif not name.endswith("/"):
                    members[Path(name).name] = outer.read(name)
    except (zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        raise DataError(f"{URL} is no archive ({error}); fetch it by hand and name its folder with --source") from error
    halves = [f"census-income.{half}{suffix}" for half in ("data", "test") for suffix in ("", ".gz")]
    found = {name.removesuffix(".gz"): members[name] for name in reversed(halves) if name in members}
    if len(found) < 2:
        raise DataError(
            f"{URL} holds no census-income.data and .test; fetch them by hand and name their folder with --source"
        )
    return {name: found[name] for name in ("census-income.data", "census-income.test")}
