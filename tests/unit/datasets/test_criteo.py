"""Criteo: values and nulls against a plain loop, the split by order, blocks that change nothing, errors with a row."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlrec.datasets import criteo, writing
from mtlrec.errors import UserError

ROWS = 140


def made_lines(rows: int = ROWS, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        counts = [str(rng.integers(-3, 5000)) if rng.random() < 0.7 else "" for _ in criteo.DENSE]
        hashes = [f"{rng.integers(2**32):08x}" if rng.random() < 0.8 else "" for _ in criteo.SPARSE]
        lines.append("\t".join([str(rng.integers(2)), *counts, *hashes]))
    return lines


def write_lines(path: Path, lines: list[str]) -> Path:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def expected_rows(lines: list[str]) -> list[dict]:
    """What a loop over the lines finds."""
    rows = []
    for line in lines:
        click, *values = line.split("\t")
        row: dict = {"click": int(click)}
        row |= {name: float(text) if text else None for name, text in zip(criteo.DENSE, values[:13], strict=True)}
        row |= {name: int(text, 16) if text else None for name, text in zip(criteo.SPARSE, values[13:], strict=True)}
        rows.append(row)
    return rows


def read(out: Path, split: str) -> list[dict]:
    return pq.read_table(out / split).to_pylist()


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_train_txt_is_split_by_its_order(tmp_path: Path, name: str) -> None:
    lines = made_lines()
    schema = criteo.prepare(write_lines(tmp_path / "in" / name, lines).parent, tmp_path / "out")
    rows = expected_rows(lines)
    assert read(tmp_path / "out", "train") == rows[:120]
    assert read(tmp_path / "out", "valid") == rows[120:130]
    assert read(tmp_path / "out", "test") == rows[130:]
    assert schema["rows"] == {"total": 140, "train": 120, "valid": 10, "test": 10}
    assert schema == json.loads((tmp_path / "out/schema.json").read_text(encoding="utf-8"))

    types = pq.read_schema(tmp_path / "out/train/part-0.parquet")
    kinds = [pa.int8(), *[pa.float32()] * 13, *[pa.int64()] * 26]
    assert [types.field(column).type for column in ["click", *criteo.DENSE, *criteo.SPARSE]] == kinds
    for column in criteo.DENSE:
        known = np.array([row[column] for row in rows[:120] if row[column] is not None])
        found = schema["dense"][column]
        assert found["nulls"] == 120 - len(known)
        assert (found["min"], found["max"]) == (known.min(), known.max())
        assert (found["mean"], found["std"]) == pytest.approx((known.mean(), known.std()))
    assert schema["labels"]["click"]["positives"]["train"] == sum(row["click"] for row in rows[:120])
    assert schema["sparse"]["C1"]["rows"] == 2**32
    assert schema["undecidable"] == ["click"]


def test_the_last_day_is_halved_and_days_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    days = {day: made_lines(30 + day, seed=day) for day in (2, 9, 10)}
    for day, lines in days.items():
        write_lines(tmp_path / "in" / (f"day_{day}.gz" if day == 9 else f"day_{day}"), lines)
    write_lines(tmp_path / "in/day_2.gz", ["the plain file is read"])
    schema = criteo.prepare(tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out", "train") == expected_rows(days[2] + days[9])
    assert read(tmp_path / "out", "valid") == expected_rows(days[10][:20])
    assert read(tmp_path / "out", "test") == expected_rows(days[10][20:])
    assert schema["source"] == {"files": ["day_2", "day_9.gz", "day_10"], "rows": 111}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_blocks_and_row_groups_change_nothing_but_their_number(tmp_path: Path, suffix: str) -> None:
    source = write_lines(tmp_path / f"train.txt{suffix}", made_lines())
    whole = criteo.prepare(source, tmp_path / "whole")
    small = criteo.prepare(source, tmp_path / "small", block_bytes=1000, row_group_rows=7)
    for split in writing.SPLITS:
        assert read(tmp_path / "small", split) == read(tmp_path / "whole", split)
    for column, found in small["dense"].items():
        assert found == pytest.approx(whole["dense"][column])
    assert small | {"dense": {}} == whole | {"dense": {}}

    files = [pq.ParquetFile(tmp_path / "small/train" / f"part-{part}.parquet") for part in (0, 1)]
    groups = [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in files]
    assert groups == [[7] * 16, [7, 1]]
    assert pq.ParquetFile(tmp_path / "whole/train/part-0.parquet").num_row_groups == 1


def changed(line: str, column: int, text: str) -> str:
    values = line.split("\t")
    values[column] = text
    return "\t".join(values)


@pytest.mark.parametrize(
    ("row", "column", "text", "message"),
    [
        (124, 0, "2", r"train\.txt: row 125, click: 2 is neither 0 nor 1; drop the row"),
        (60, 0, "", r"train\.txt: row 61, click: an empty field is neither 0 nor 1"),
        (50, 14, "zzzzzzzz", r"train\.txt: row 51, C1: 'zzzzzzzz' is not 8 hex digits; give the publisher's file"),
        (50, 39, "1a2b3c", r"train\.txt: row 51, C26: '1a2b3c' is not 8 hex digits"),
        (50, 20, "1a2b 3c4", r"train\.txt: row 51, C7: '1a2b 3c4' is not 8 hex digits"),
        (50, 20, "ä2345678", r"train\.txt: row 51, C7: 'ä2345678' is not 8 hex digits"),
        (99, 3, "1.5", r"train\.txt: row 100, I3: .*'1\.5'; give the publisher's file"),
        (70, 5, "1\t2", r"train\.txt: row 71: Expected 40 columns, got 41"),
        (0, 0, "label", r"train\.txt: row 1, click: .*'label'"),
    ],
)
def test_an_error_names_row_and_column_and_leaves_nothing(
    tmp_path: Path, row: int, column: int, text: str, message: str
) -> None:
    lines = made_lines()
    lines[row] = changed(lines[row], column, text)
    source = write_lines(tmp_path / "train.txt", lines)
    for block_bytes in (1000, 1 << 20):
        with pytest.raises(UserError, match=message) as caught:
            criteo.prepare(source, tmp_path / "out", block_bytes, row_group_rows=16)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(made_lines()).encode())
    (tmp_path / "cut.gz").write_bytes(whole[:-200])
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    write_lines(tmp_path / "day/day_0", made_lines())
    write_lines(tmp_path / "short", made_lines(5))
    mistakes = {
        "missing": r"source: no train\.txt or train\.txt\.gz at .*missing; .*https",
        "folder": r"source: no train\.txt or train\.txt\.gz at .*folder; .*https",
        "cut.gz": r"cut\.gz: Truncated compressed stream; copy or download it again",
        "empty": r"empty has 0 rows; at least 14",
        "short": r"short has 5 rows; at least 14",
        "day": r"a single day file; name the file itself",
    }
    for name, message in mistakes.items():
        with pytest.raises(UserError, match=message) as caught:
            criteo.prepare(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"train\.txt: a line is longer than 200 bytes"):
        criteo.prepare(write_lines(tmp_path / "train.txt", made_lines()), tmp_path / "out", block_bytes=200)
    with pytest.raises(UserError, match="row_group_rows: 0 is not positive"):
        criteo.prepare(tmp_path / "train.txt", tmp_path / "out", row_group_rows=0)


def test_what_was_there_before_stays_or_is_replaced(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "train.txt", made_lines())
    criteo.prepare(source, tmp_path / "out", row_group_rows=4)
    assert len(list((tmp_path / "out/train").iterdir())) == 2
    criteo.prepare(source, tmp_path / "out")
    assert len(list((tmp_path / "out/train").iterdir())) == 1
    (tmp_path / "theirs/train").mkdir(parents=True)
    (tmp_path / "theirs/train/log.parquet").touch()
    with pytest.raises(UserError, match=r"no schema\.json"):
        criteo.prepare(source, tmp_path / "theirs")
    assert (tmp_path / "theirs/train/log.parquet").exists()


def test_a_full_disk_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path / "in" / "train.txt", made_lines())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.PartWriter, "close", full)
    with pytest.raises(OSError, match="No space left"):
        criteo.prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    criteo.prepare(source, tmp_path / "out")
