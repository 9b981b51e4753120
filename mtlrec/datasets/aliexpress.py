"""AliExpress: product searches in five countries, the data set of many multi-task papers. Two tasks: click, conversion.

One country's train.csv and test.csv, as data/preprocess.py of the Multitask-Recommendation-Library makes them of the
publisher's user and item files, become Parquet. They have a header and 82 columns; a row is a product shown for a
search:

    key      search_id                  user_1 of the publisher's files, which joins them
    sparse   categorical_1 to _16       user_2 to _8, user_32, user_33, item_19, _34, _35, _36, _40, _41, _42
    dense    numerical_1 to _63         user_9 to _31, then the other columns of item_2 to _48; null where empty
    labels   click, conversion          item_49 of 0, 1, 2 as 00, 10, 11

Ids stay as they are, small numbers from 0: a column's table has the largest of all splits + 1 rows. The publisher says
nothing of what the columns are. It parted train and test by time; a row bears none, so that the last tenth of train in
the order of the file becomes valid (a search at the cut may have rows on both sides).
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mtlrec.datasets import streaming, writing
from mtlrec.errors import DataError

PAGE = "https://tianchi.aliyun.com/dataset/74690"
LIBRARY = "https://github.com/easezyc/Multitask-Recommendation-Library"
SPARSE = [f"categorical_{i}" for i in range(1, 17)]
DENSE = [f"numerical_{i}" for i in range(1, 64)]
LABELS = ["click", "conversion"]
COLUMNS = {
    "search_id": pa.int64(),
    **dict.fromkeys(SPARSE, pa.int64()),
    **dict.fromkeys(DENSE, pa.float32()),
    **dict.fromkeys(LABELS, pa.int64()),
}


def prepare(
    source: Path,
    out: Path,
    block_bytes: int = streaming.BLOCK_BYTES,
    row_group_rows: int = streaming.ROW_GROUP_ROWS,
    progress: streaming.Progress = streaming.unseen,
) -> writing.Schema:
    """Write the Parquet data set to `out`; returns the content of its schema.json.

    Args:
        source: a country's folder, with train.csv and test.csv; each plain or .gz.
        out: the folder to write to.
        block_bytes: how much of a file is read at a time.
        row_group_rows: rows of a Parquet row group.
        progress: is told of every file that is read and every split that is written.

    Raises:
        DataError: a file is missing, or not in this format (names file, row and column).

    Source: Li et al., Improving multi-scenario learning to rank in e-commerce by exploiting task relationships in the
    label space, CIKM 2020; https://tianchi.aliyun.com/dataset/74690.
    """
    remedy = f"the publisher's files are at {PAGE}, {LIBRARY} makes train.csv and test.csv of them"
    paths = {half: streaming.find(Path(source), f"{half}.csv", remedy) for half in ("train", "test")}
    rows = streaming.count_rows(paths["train"]) - 1
    if rows < 10:
        raise DataError(f"source: {paths['train'].name} has {rows} rows; at least 10 are needed for train and valid")
    ends = {"train": {"train": rows - rows // 10, "valid": rows}, "test": {"test": streaming.count_rows(paths["test"])}}

    largest = dict.fromkeys(SPARSE, 0)
    edges = [("click", "conversion")]
    with streaming.SplitWriter(
        out, LABELS, edges, dense=DENSE, row_group_rows=row_group_rows, progress=progress
    ) as writer:
        for half, path in paths.items():
            file = streaming.Csv(path, COLUMNS, header=True, block_bytes=block_bytes, progress=progress)
            for first, batch in file.blocks():
                file.check_flags(first, batch, LABELS)
                for name in SPARSE:
                    largest[name] = max(largest[name], _largest(file, first, name, batch[name]))
                typed = batch
                for name in LABELS:
                    typed = typed.set_column(typed.schema.get_field_index(name), name, typed[name].cast(pa.int8()))
                for split, part in streaming.parts_of(first, typed, ends[half]):
                    writer.write(split, part)

    schema: writing.Schema = {
        "dataset": "aliexpress",
        "citation": "Li et al., Improving multi-scenario learning to rank in e-commerce, CIKM 2020",
        "license": "Tianchi's, see the publisher's page",
        "source": {"files": [path.name for path in paths.values()], "rows": sum(writer.rows.values())},
        "split": {"kind": "publisher", "valid": "the last tenth of train.csv in its order"},
        "keys": ["search_id"],
        "sparse": {name: {"rows": value + 1} for name, value in largest.items()},
        "lists": {},
        **writer.schema(),
    }
    writing.write_json(out / "schema.json", schema)
    return schema


def _largest(file: streaming.Csv, first: int, name: str, ids: pa.Array) -> int:
    """The largest id, 0 where all are null. Raises DataError for a negative one."""
    found = pc.min_max(ids).as_py()
    if (found["min"] or 0) < 0:
        row = first + pc.index(ids, found["min"]).as_py()
        raise file.error(row, name, f"{found['min']} is negative; ids are 0 and above")
    return int(found["max"] or 0)
