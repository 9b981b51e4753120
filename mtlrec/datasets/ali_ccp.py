"""Ali-CCP: impressions of Taobao's recommender with clicks and the buys that follow, the data set of ESMM.

The publisher's four files become Parquet. A line of sample_skeleton_{train,test}.csv is an impression, `sample_id,
click, buy, common_feature_index, feature_num, feature_list`; a line of common_features_{train,test}.csv is what many
impressions share, `common_feature_index, feature_num, feature_list`. A feature_list holds items with \\x01 between
them, each `field \\x02 id \\x03 value`.

    key     sample_id
    labels  click, buy
    sparse  f101 (user), f121, f122, f124 to f129 of the shared line; f205 (item), f206 (category), f207 (shop), f216
            (brand), f301 (scenario), f508, f509, f702, f853 (user and item combined) of the impression
    lists   f109_14, f110_14, f127_14, f150_14: categories, shops, brands and intentions the user turned to, each with
            its float32 values in f109_14_weight and so on, the largest last and at most `history` of them

Ids are 1..n by value over the train split, field by field; those with fewer than `min_count` train rows, and a field
that an impression lacks, are 0 and left out of lists. vocabularies.parquet holds (field, value, id).

As in AITM's published preparation, a field outside the lists keeps its last id where it has several (f853 may) and no
value, and field 210 (intentions of the item) is not used. Unlike there, an impression with a buy and no click is kept:
training takes both labels, and schema.json's `edges` says how many rows that changes.

The publisher parted train and test by time; a row bears none, and the last tenth of train in the order of the file
becomes valid. The file is grouped by common_feature_index, that is by user, so that most users of valid are not in
train: schema.json's `unseen_in_train` counts the rows without a known user (f101) or item (f205).
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mtlrec.datasets import streaming, writing
from mtlrec.datasets.ids import NO_ID, Counts, EncodedLists, encode, list_array, write_vocabularies
from mtlrec.errors import DataError

PAGE = "https://tianchi.aliyun.com/dataset/408"
USER = ["f101", "f121", "f122", "f124", "f125", "f126", "f127", "f128", "f129"]
LISTS = ["f109_14", "f110_14", "f127_14", "f150_14"]
IMPRESSION = ["f205", "f206", "f207", "f216", "f301", "f508", "f509", "f702", "f853"]
SAMPLES = {
    "sample_id": pa.int64(),
    "click": pa.int64(),
    "buy": pa.int64(),
    "common_feature_index": pa.string(),
    "feature_num": pa.int64(),
    "feature_list": pa.string(),
}
COMMON = {name: SAMPLES[name] for name in ("common_feature_index", "feature_num", "feature_list")}
# A row group has up to `history` ids and weights of four lists in each row.
ROW_GROUP_ROWS = 100_000


def prepare(
    source: Path,
    out: Path,
    min_count: int = 10,
    history: int = 50,
    block_bytes: int = streaming.BLOCK_BYTES,
    row_group_rows: int = ROW_GROUP_ROWS,
    progress: streaming.Progress = streaming.unseen,
) -> writing.Schema:
    """Write the Parquet data set to `out`; returns the content of its schema.json.

    While it runs, `out` also holds the parsed files, of about half the publisher's size.

    Args:
        source: the folder with the publisher's four files, each plain or .gz.
        out: the folder to write to.
        min_count: train rows that an id of its own takes; one that a list names counts once for each row with it.
        history: the length of the lists, at most; those of largest value are kept.
        block_bytes: how much of a file is read at a time; a line must fit.
        row_group_rows: rows of a Parquet row group.
        progress: is told of every file that is read and every split that is written.

    Raises:
        DataError: a file is missing or not in the publisher's format (names file, row and column), an impression's
            common_feature_index is not in the file beside it, or `min_count` or `history` is below 1.

    Source: https://tianchi.aliyun.com/dataset/408; Ma et al., Entire Space Multi-Task Model, SIGIR 2018.
    Preparation: Xi et al., AITM, KDD 2021, https://github.com/xidongbo/AITM, process_public_data.py.
    """
    for name, value in (("min_count", min_count), ("history", history)):
        if value < 1:
            raise DataError(f"{name}: {value} is not positive; 1 is the least")
    remedy = f"the publisher's four files are at {PAGE}"
    files = {
        (kind, half): streaming.find(Path(source), f"{kind}_{half}.csv", remedy)
        for half in ("train", "test")
        for kind in ("common_features", "sample_skeleton")
    }
    with (
        streaming.SplitWriter(
            out, ["click", "buy"], edges=[("click", "buy")], row_group_rows=row_group_rows, progress=progress
        ) as writer,
        tempfile.TemporaryDirectory(prefix="parsed-", dir=out) as parsed,
    ):
        halves = {}
        for half in ("train", "test"):
            common = streaming.Csv(files["common_features", half], COMMON, block_bytes=block_bytes, progress=progress)
            samples = streaming.Csv(files["sample_skeleton", half], SAMPLES, block_bytes=block_bytes, progress=progress)
            halves[half] = _Half(common, samples, Path(parsed) / half)
        rows = halves["train"].rows
        if rows < 10:
            name = files["sample_skeleton", "train"].name
            raise DataError(f"source: {name} has {rows} rows; at least 10 are needed for train and valid")
        train_rows = rows - rows // 10
        vocabularies = halves["train"].vocabularies(train_rows, min_count)
        zeros = {split: dict.fromkeys(["f101", "f205"], 0) for split in ("valid", "test")}
        for half, ends in (("train", {"train": train_rows, "valid": rows}), ("test", {"test": halves["test"].rows})):
            for first, batch in halves[half].encoded(vocabularies, history):
                for split, part in streaming.parts_of(first, batch, ends):
                    writer.write(split, part)
                    for name in zeros.get(split, {}):
                        zeros[split][name] += int(pc.sum(pc.equal(part[name], 0)).as_py())

    write_vocabularies(out / "vocabularies.parquet", vocabularies)
    tables = {name: len(values) + 1 for name, values in vocabularies.items()}
    schema: writing.Schema = {
        "dataset": "ali_ccp",
        "citation": "Ma et al., Entire Space Multi-Task Model, SIGIR 2018, arXiv:1804.07931",
        "license": "Tianchi's, see the publisher's page",
        "source": {"files": [path.name for path in files.values()], "rows": sum(writer.rows.values())},
        "split": {"kind": "publisher", "valid": "the last tenth of the train file in its order"},
        "keys": ["sample_id"],
        "sparse": {name: {"rows": tables[name]} for name in [*USER, *IMPRESSION]},
        "lists": {
            name: {"rows": tables[name], "max_length": history, "table": name, "weights": f"{name}_weight"}
            for name in LISTS
        },
        **writer.schema(),
        "unseen_in_train": zeros,
    }
    writing.write_json(out / "schema.json", schema)
    return schema


class _Half:
    """The train or the test files: parsed once to Arrow files in `folder`, and read from there as often as needed."""

    def __init__(self, common: streaming.Csv, samples: streaming.Csv, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.lines = _spool(folder / "common.arrow", self._parsed_common(common))
        index = [batch["index"] for batch in _batches(folder / "common.arrow")]
        self.rows = _spool(folder / "samples.arrow", self._parsed_samples(samples, pa.concat_arrays(index)))

    def _parsed_common(self, file: streaming.Csv) -> Iterator[pa.RecordBatch]:
        for first, batch in file.blocks():
            items = _Items(file, first, batch["feature_list"], [*USER, *LISTS])
            data = {"index": batch["common_feature_index"]}
            data |= {name: items.last(name) for name in USER}
            for name in LISTS:
                data[name], data[f"{name}_weight"] = items.lists(name)
            yield pa.RecordBatch.from_pydict(data)

    def _parsed_samples(self, file: streaming.Csv, index: pa.Array) -> Iterator[pa.RecordBatch]:
        for first, batch in file.blocks():
            file.check_flags(first, batch, ["click", "buy"])
            line = pc.index_in(batch["common_feature_index"], value_set=index)
            if line.null_count:
                row = int(np.argmax(np.asarray(line.is_null())))
                what = f"{batch['common_feature_index'][row].as_py()!r} is in no line of the common features"
                raise file.error(first + row, "common_feature_index", f"{what}; give the two files of one half")
            items = _Items(file, first, batch["feature_list"], IMPRESSION)
            data = {"sample_id": batch["sample_id"], "line": line}
            data |= {name: batch[name].cast(pa.int8()) for name in ("click", "buy")}
            data |= {name: items.last(name) for name in IMPRESSION}
            yield pa.RecordBatch.from_pydict(data)

    def vocabularies(self, train_rows: int, min_count: int) -> dict[str, np.ndarray]:
        """The sorted ids of each field with `min_count` or more of the first `train_rows` rows."""
        counts = {name: Counts() for name in [*USER, *LISTS, *IMPRESSION]}
        shown = np.zeros(self.lines, np.int64)  # train rows of each line of the common features
        first = 0
        for batch in _batches(self.folder / "samples.arrow"):
            train = batch.slice(0, max(train_rows - first, 0))
            shown += np.bincount(train["line"], minlength=self.lines)
            for name in IMPRESSION:
                counts[name].add(train[name].to_numpy(), np.ones(train.num_rows, np.int64))
            first += batch.num_rows
        first = 0
        for batch in _batches(self.folder / "common.arrow"):
            rows = shown[first : first + batch.num_rows]
            for name in USER:
                counts[name].add(batch[name].to_numpy(), rows)
            for name in LISTS:
                lengths = pc.list_value_length(batch[name]).to_numpy()
                counts[name].add(batch[name].flatten().to_numpy(), np.repeat(rows, lengths))
            first += batch.num_rows
        return {name: found.at_least(min_count) for name, found in counts.items()}

    def encoded(self, vocabularies: dict[str, np.ndarray], history: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(index of its first row, joined rows under `vocabularies`) of each block of impressions."""
        user: dict[str, list[np.ndarray]] = {name: [] for name in USER}
        lists = {name: EncodedLists(self.folder, name, history) for name in LISTS}
        for batch in _batches(self.folder / "common.arrow"):
            for name in USER:
                user[name].append(encode(batch[name].to_numpy(), vocabularies[name]))
            for name in LISTS:
                lists[name].append(batch[name], batch[f"{name}_weight"], vocabularies[name])
        of_line = {name: np.concatenate(ids) for name, ids in user.items()}
        first = 0
        for batch in _batches(self.folder / "samples.arrow"):
            line = batch["line"].to_numpy()
            data: dict[str, pa.Array | np.ndarray] = {name: batch[name] for name in ("sample_id", "click", "buy")}
            data |= {name: ids[line] for name, ids in of_line.items()}
            data |= {name: encode(batch[name].to_numpy(), vocabularies[name]) for name in IMPRESSION}
            for name in LISTS:
                data[name], data[f"{name}_weight"] = lists[name].of(line)
            yield first, pa.RecordBatch.from_pydict(data)
            first += batch.num_rows


class _Items:
    """The items of a block of feature_lists: row, field, id and value of each, in the order of the file.

    The separators become those of a CSV file of three columns, which Arrow's reader parses at once.
    """

    def __init__(self, file: streaming.Csv, first: int, texts: pa.Array, fields: list[str]) -> None:
        self.rows, self.fields = len(texts), fields
        filled = pc.fill_null(texts, "")
        counts = np.asarray(pc.if_else(pc.equal(filled, ""), 0, pc.add(pc.count_substring(filled, "\x01"), 1)))
        present = texts.filter(pa.array(counts > 0))
        whole = pc.binary_join(pa.ListArray.from_arrays([0, len(present)], present), "\x01")[0].as_buffer()
        text = whole.to_pybytes().translate(bytes.maketrans(b"\x01\x02\x03", b"\n,,"))
        try:
            table = self._read(text, use_threads=True)
        except pa.ArrowInvalid as error:
            raise self._located(file, first, text, counts, error) from error
        names = pa.array([name.removeprefix("f") for name in fields])
        self.field = pc.fill_null(pc.index_in(table["field"], value_set=names), -1).to_numpy()
        self.row = np.repeat(np.arange(self.rows), counts)
        self.id, self.value = table["id"].to_numpy(), table["value"].to_numpy()

    def last(self, name: str) -> np.ndarray:
        """The last id of the field in each row, NO_ID where it has none."""
        chosen = self.field == self.fields.index(name)
        ids = np.full(self.rows, NO_ID, np.int64)
        ids[self.row[chosen]] = self.id[chosen]  # of several to one row, NumPy keeps the last
        return ids

    def lists(self, name: str) -> tuple[pa.ListArray, pa.ListArray]:
        """All ids of the field in each row, and their values."""
        chosen = self.field == self.fields.index(name)
        lengths = np.bincount(self.row[chosen], minlength=self.rows)
        return list_array(lengths, self.id[chosen]), list_array(lengths, self.value[chosen])

    @staticmethod
    def _read(text: bytes, use_threads: bool) -> pa.Table:
        types = {"field": pa.string(), "id": pa.int64(), "value": pa.float32()}
        if not text:
            return pa.schema(types).empty_table()
        return pa_csv.read_csv(
            pa.BufferReader(text),
            read_options=pa_csv.ReadOptions(column_names=list(types), use_threads=use_threads),
            parse_options=pa_csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(column_types=types, null_values=[]),
        )

    def _located(self, file: streaming.Csv, first: int, text: bytes, counts: np.ndarray, error: Exception) -> DataError:
        try:
            self._read(text, use_threads=False)
        except pa.ArrowInvalid as again:
            error = again
        place = re.search(r"Row #(\d+)", str(error))
        item = int(place[1]) - 1 if place else 0
        row = int(np.searchsorted(np.cumsum(counts), item, side="right"))
        written = text.split(b"\n")[item].decode("utf-8", "replace")[:80]
        what = f"item {written!r} is not a field, an id and a value"
        return file.error(first + row, "feature_list", f"{what}; {streaming.GIVE_IT_AS_IT_IS}")


def _spool(path: Path, batches: Iterator[pa.RecordBatch]) -> int:
    """Write `batches` to an Arrow file; returns their rows."""
    first = next(batches)
    rows: int = first.num_rows
    with pa.ipc.new_file(str(path), first.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        file.write_batch(first)
        for batch in batches:
            file.write_batch(batch)
            rows += batch.num_rows
    return rows


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as stream, pa.ipc.open_file(stream) as file:
        for i in range(file.num_record_batches):
            yield file.get_batch(i)
