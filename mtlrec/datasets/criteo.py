"""Criteo: display ads with a click each, the data set of DLRM, DCN and the MLPerf benchmark. One task.

Both of Criteo's releases become Parquet, in the publisher's order, which is that of time:

    train.txt           Display Advertising Challenge (Kaggle), 7 days, 45,840,617 rows in one file: the first 6/7 of
                        the rows to train, the next 1/14 to valid, the last 1/14 to test
    day_0 ... day_23    1TB Click Logs: all days but the last to train, that one's halves to valid and test

    label    click
    dense    I1 to I13, counts, as float32; null where the field is empty
    sparse   C1 to C26 as int64, the number that the 8 hex digits write; null where the field is empty

A line is the click, 13 integers and 26 hashes of 32 bits, separated by tabs; a file has no header. Nothing is fitted:
ids lie anywhere below 2**32, and a job folds them into its tables with `transform: modulo`. `transform: log1p` takes
x >= 0, and Criteo's counts go below (I2 to -3): published work shifts them, log(x + 3) say, or clips; the recipe here
clips at 0 first, `transform: [clip, log1p]` with `min: 0`. Both releases keep only a part of the rows, clicked and
others at rates that Criteo does not tell: a predicted probability is one of this sample.

Column i of one release is not column i of the other, and their hashes differ.
"""

import binascii
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlrec.datasets import streaming, writing
from mtlrec.errors import DataError

PAGE = "https://ailab.criteo.com/ressources/"
DENSE = [f"I{i}" for i in range(1, 14)]
SPARSE = [f"C{i}" for i in range(1, 27)]
COLUMNS = {"click": pa.int64(), **dict.fromkeys(DENSE, pa.int64()), **dict.fromkeys(SPARSE, pa.string())}
HEX_DIGITS = 8


def prepare(
    source: Path,
    out: Path,
    block_bytes: int = streaming.BLOCK_BYTES,
    row_group_rows: int = streaming.ROW_GROUP_ROWS,
    progress: streaming.Progress = streaming.unseen,
) -> writing.Schema:
    """Write the Parquet data set to `out`; returns the content of its schema.json.

    Args:
        source: one file in Criteo's format, split by its rows, or a folder with day_N files or, if it has none,
            train.txt; each plain or .gz.
        out: the folder to write to.
        block_bytes: how much of a file is read at a time.
        row_group_rows: rows of a Parquet row group.
        progress: is told of every file that is read and every split that is written.

    Raises:
        DataError: nothing found at `source`, or not the publisher's format (names file, row and column).

    Source: https://www.kaggle.com/c/criteo-display-ad-challenge (2014);
    https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset, CC BY-NC-SA 4.0. The halves of the last day follow
    MLPerf's DLRM.
    """
    paths = _find(Path(source))
    rows = streaming.count_rows(paths[-1])
    if len(paths) == 1:
        train = rows * 6 // 7
        split, ends = "6/7, 1/14, 1/14 of the rows", {"train": train, "valid": train + (rows - train) // 2}
    else:
        split, ends = "all days but the last, its halves", {"valid": rows // 2}
    ends["test"] = rows
    if min(np.diff([0, *ends.values()])) < 1:
        raise DataError(f"source: {paths[-1].name} has {rows} rows; at least 14 are needed for the three splits")

    with streaming.SplitWriter(
        out, labels=["click"], dense=DENSE, row_group_rows=row_group_rows, progress=progress
    ) as writer:
        for path in paths:
            file = streaming.Csv(path, COLUMNS, delimiter="\t", block_bytes=block_bytes, progress=progress)
            of_file = ends if path == paths[-1] else {"train": sys.maxsize}
            for first, batch in file.blocks():
                for part, part_rows in streaming.parts_of(first, _columns(file, first, batch), of_file):
                    writer.write(part, part_rows)

    schema: writing.Schema = {
        "dataset": "criteo",
        "citation": "Criteo, Display Advertising Challenge, Kaggle, 2014; Criteo 1TB Click Logs",
        "license": "1TB Click Logs: CC BY-NC-SA 4.0; Display Advertising Challenge: Criteo's terms",
        "source": {"files": [path.name for path in paths], "rows": sum(writer.rows.values())},
        "split": {"kind": "time", "parts": split},
        "keys": [],
        "sparse": {name: {"rows": 16**HEX_DIGITS} for name in SPARSE},
        "lists": {},
        **writer.schema(),
    }
    writing.write_json(out / "schema.json", schema)
    return schema


def _columns(file: streaming.Csv, first: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    file.check_flags(first, batch, ["click"])
    data = {"click": batch["click"].cast(pa.int8())}
    data |= {name: batch[name].cast(pa.float32(), safe=False) for name in DENSE}
    data |= {name: _hashes(file, first, name, batch[name]) for name in SPARSE}
    return pa.RecordBatch.from_pydict(data)


def _hashes(file: streaming.Csv, first: int, name: str, texts: pa.Array) -> pa.Array:
    """The numbers that 8 hex digits each write, null where null."""
    try:
        digits = pc.fill_null(texts, "0" * HEX_DIGITS).cast(pa.binary()).cast(pa.binary(HEX_DIGITS))
        begin, end = digits.offset * HEX_DIGITS, (digits.offset + len(digits)) * HEX_DIGITS
        numbers = np.frombuffer(binascii.unhexlify(digits.buffers()[1][begin:end]), ">u4")
    except (pa.ArrowInvalid, binascii.Error) as error:
        right = pc.fill_null(pc.match_substring_regex(texts, f"^[0-9a-fA-F]{{{HEX_DIGITS}}}$"), True)
        row = int(np.argmin(np.asarray(right)))
        what = f"{texts[row].as_py()!r} is not {HEX_DIGITS} hex digits"
        raise file.error(first + row, name, f"{what}; {streaming.GIVE_IT_AS_IT_IS}") from error
    return pa.array(numbers.astype(np.int64), mask=np.asarray(texts.is_null()))


def _find(source: Path) -> list[Path]:
    """The day files in the order of their numbers, or the one file; a plain file is preferred to its .gz."""
    if source.is_file():
        return [source]
    found = sorted(source.glob("day_*")) if source.is_dir() else []
    days = {int(match[1]) for path in found if (match := re.fullmatch(r"day_(\d+)(\.gz)?", path.name))}
    remedy = f"name one of Criteo's files or a folder of them; they are at {PAGE}"
    if len(days) == 1:
        raise DataError(f"source: {source} has a single day file; name the file itself to split it by its rows")
    if days:
        return [streaming.find(source, f"day_{day}", remedy) for day in sorted(days)]
    return [streaming.find(source, "train.txt", remedy)]
