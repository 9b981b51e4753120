"""AliExpress: values against a plain loop, ids as they are, valid from the end of train, errors with a row."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlrec.datasets import aliexpress, writing
from mtlrec.errors import UserError

COLUMNS = list(aliexpress.COLUMNS)


def made_csv(rows: int, seed: int = 0) -> str:
    """A file as the library writes it: search by search, floats as pandas prints them, a buy only after a click."""
    rng = np.random.default_rng(seed)
    lines = [",".join(COLUMNS)]
    for row in range(rows):
        ids = [str(rng.integers(20 + i)) for i in range(16)]
        numbers = [repr(float(x)) for x in np.round(rng.random(63) * 10.0 ** rng.integers(-6, 3, 63), 9)]
        numbers[int(rng.integers(63))] = ""
        click = int(rng.random() < 0.3)
        lines.append(",".join([str(row // 7), *ids, *numbers, str(click), str(click & int(rng.integers(2)))]))
    return "\n".join(lines) + "\n"


def write_country(folder: Path, suffix: str = "", **changed: str) -> Path:
    folder.mkdir(exist_ok=True)
    for half, text in ({"train": made_csv(105), "test": made_csv(40, seed=1)} | changed).items():
        content = text.encode()
        (folder / f"{half}.csv{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def expected_rows(text: str) -> list[dict]:
    rows = []
    for line in csv.DictReader(io.StringIO(text)):
        row: dict = {name: int(line[name]) for name in ["search_id", *aliexpress.SPARSE, *aliexpress.LABELS]}
        row |= {name: float(np.float32(line[name])) if line[name] else None for name in aliexpress.DENSE}
        rows.append(row)
    return rows


def read(out: Path, split: str) -> list[dict]:
    return pq.read_table(out / split).to_pylist()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_country_against_a_loop_over_its_rows(tmp_path: Path, suffix: str) -> None:
    schema = aliexpress.prepare(write_country(tmp_path / "NL", suffix), tmp_path / "out")
    train, test = expected_rows(made_csv(105)), expected_rows(made_csv(40, seed=1))
    expected = {"train": train[:95], "valid": train[95:], "test": test}
    for split, rows in expected.items():
        assert read(tmp_path / "out", split) == rows
        for label in aliexpress.LABELS:
            assert schema["labels"][label]["positives"][split] == sum(row[label] for row in rows)
    assert schema["rows"] == {"total": 145, "train": 95, "valid": 10, "test": 40}
    assert schema["edges"] == [{"parent": "click", "child": "conversion", "changed": dict.fromkeys(expected, 0)}]
    for name in aliexpress.SPARSE:
        assert schema["sparse"][name]["rows"] == max(row[name] for row in [*train, *test]) + 1
    for name in aliexpress.DENSE:
        known = np.array([row[name] for row in train[:95] if row[name] is not None])
        assert schema["dense"][name]["mean"] == pytest.approx(known.mean())
        assert schema["dense"][name]["std"] == pytest.approx(known.std())
    types = pq.read_schema(tmp_path / "out/train/part-0.parquet")
    kinds = [pa.int64()] * 17 + [pa.float32()] * 63 + [pa.int8()] * 2
    assert [types.field(name).type for name in COLUMNS] == kinds


def test_blocks_and_row_groups_change_nothing_but_their_number(tmp_path: Path) -> None:
    source = write_country(tmp_path / "NL")
    aliexpress.prepare(source, tmp_path / "whole")
    aliexpress.prepare(source, tmp_path / "small", block_bytes=4000, row_group_rows=9)
    for split in writing.SPLITS:
        assert read(tmp_path / "small", split) == read(tmp_path / "whole", split)
    assert pq.ParquetFile(tmp_path / "small/train/part-0.parquet").num_row_groups == 11
    assert pq.ParquetFile(tmp_path / "whole/train/part-0.parquet").num_row_groups == 1


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    lines = [line.split(",") for line in made_csv(105).splitlines()]
    turned = "\n".join(",".join(line[::-1]) for line in lines) + "\n"
    aliexpress.prepare(write_country(tmp_path / "NL", train=turned.replace("\n", "\r\n")), tmp_path / "out")
    assert read(tmp_path / "out", "train") == expected_rows(made_csv(105))[:95]


def test_a_conversion_without_a_click_is_kept_and_reported(tmp_path: Path) -> None:
    lines = made_csv(105).splitlines()
    lines[1] = lines[1].rpartition(",")[0].rpartition(",")[0] + ",0,1"
    schema = aliexpress.prepare(write_country(tmp_path / "NL", train="\n".join(lines)), tmp_path / "out")
    assert schema["edges"][0]["changed"] == {"train": 1, "valid": 0, "test": 0}
    assert read(tmp_path / "out", "train")[0]["conversion"] == 1


def with_value(row: int, name: str, value: str) -> str:
    """The made file with one value changed; row 1 is the first after the header."""
    lines = [line.split(",") for line in made_csv(105).splitlines()]
    lines[row][COLUMNS.index(name)] = value
    return "\n".join(map(",".join, lines)) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (with_value(100, "click", "2"), r"train\.csv: row 101, click: 2 is neither 0 nor 1; drop the row"),
        (with_value(3, "conversion", ""), r"train\.csv: row 4, conversion: an empty field is neither 0 nor 1"),
        (with_value(60, "categorical_4", "-1"), r"train\.csv: row 61, categorical_4: -1 is negative; ids are 0"),
        (with_value(60, "categorical_4", "x"), r"train\.csv: row 61, categorical_4: .*'x'; give the publisher's"),
        (with_value(60, "numerical_9", "x"), r"train\.csv: row 61, numerical_9: .*'x'; give the publisher's"),
        (with_value(60, "numerical_9", "1,2"), r"train\.csv: row 61: Expected 82 columns, got 83"),
        (with_value(0, "numerical_63", "numerical_64"), r"train\.csv: no column 'numerical_63' in its first line"),
        ("", r"train\.csv has -?\d+ rows; at least 10"),
        (made_csv(9), r"train\.csv has 9 rows; at least 10"),
    ],
)
def test_an_error_names_row_and_column_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    source = write_country(tmp_path / "NL", train=text)
    for block_bytes in (4000, 1 << 20):
        with pytest.raises(UserError, match=message) as caught:
            aliexpress.prepare(source, tmp_path / "out", block_bytes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_files_that_are_missing_or_cut(tmp_path: Path) -> None:
    source = write_country(tmp_path / "NL", ".gz")
    content = (source / "test.csv.gz").read_bytes()
    (source / "test.csv.gz").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"test\.csv\.gz: Truncated compressed stream; copy or download it again"):
        aliexpress.prepare(source, tmp_path / "out")
    (source / "test.csv.gz").unlink()
    with pytest.raises(UserError, match=r"source: no test\.csv or test\.csv\.gz at .*NL; .*https"):
        aliexpress.prepare(source, tmp_path / "out")
