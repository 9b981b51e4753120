"""Ali-CCP: the joined rows, vocabularies and lists against a plain loop over the four files; errors with a row."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlrec.datasets import ali_ccp, ids, writing
from mtlrec.errors import UserError

Item = tuple[str, int, float]
USER = [name[1:] for name in ali_ccp.USER]
IMPRESSION = [name[1:] for name in ali_ccp.IMPRESSION]
LISTS = [name[1:] for name in ali_ccp.LISTS]


def packed(items: list[Item]) -> str:
    return "\x01".join(f"{field}\x02{value}\x03{weight}" for field, value, weight in items)


def made_half(lines: int, rows: int, seed: int) -> dict[str, list[str]]:
    """Lines of the two files of one half: absent fields, several ids of one field, lists with ties, unused fields."""
    rng = np.random.default_rng(seed)
    index = [f"{rng.integers(2**63):016x}" for _ in range(lines)]
    common = []
    for line in range(lines):
        items: list[Item] = [(field, int(rng.integers(9)) + 400_000, 1.0) for field in USER if rng.random() < 0.9]
        for field in LISTS:
            items += [(field, int(i), round(float(rng.integers(1, 5)) / 3, 5)) for i in rng.integers(12, size=line % 9)]
        rng.shuffle(items)
        items = [(str(field), int(value), float(weight)) for field, value, weight in items]
        common.append(f"{index[line]},{len(items)},{packed(items)}")
    samples = []
    for row in range(rows):
        fields = [*IMPRESSION, "853", "210", "210"]
        items = [(field, int(rng.integers(15)) + 9_000_000, 0.5) for field in fields if rng.random() < 0.8]
        click, buy = int(rng.random() < 0.4), int(rng.random() < 0.2)
        samples.append(f"{row},{click},{buy},{index[row * lines // rows]},{len(items)},{packed(items)}")
    return {"common_features": common, "sample_skeleton": samples}


HALVES = {"train": made_half(lines=23, rows=200, seed=0), "test": made_half(lines=11, rows=60, seed=1)}


def write_files(folder: Path, suffix: str = "", **changed: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for half, files in HALVES.items():
        for kind, lines in files.items():
            name = f"{kind}_{half}"
            content = "".join(f"{line}\n" for line in changed.get(name, lines)).encode()
            (folder / f"{name}.csv{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def unpacked(text: str) -> list[Item]:
    items = (item.replace("\x03", "\x02").split("\x02") for item in text.split("\x01") if item)
    return [(field, int(value), float(np.float32(weight))) for field, value, weight in items]


def joined(half: str) -> list[dict]:
    """Raw ids and lists of each impression, by a loop over the lines."""
    common = {}
    for line in HALVES[half]["common_features"]:
        index, _, text = line.split(",")
        common[index] = unpacked(text)
    rows = []
    for line in HALVES[half]["sample_skeleton"]:
        sample, click, buy, index, _, text = line.split(",")
        own = {field: value for field, value, _ in unpacked(text)}
        shared = {field: value for field, value, _ in common[index]}
        row: dict = {"sample_id": int(sample), "click": int(click), "buy": int(buy)}
        row |= {field: own.get(field) for field in IMPRESSION} | {field: shared.get(field) for field in USER}
        row |= {field: [(v, w) for name, v, w in common[index] if name == field] for field in LISTS}
        rows.append(row)
    return rows


def expected_vocabularies(train: list[dict], min_count: int) -> dict[str, dict[int, int]]:
    found = {}
    for field in [*USER, *LISTS, *IMPRESSION]:
        counts: Counter = Counter()
        for row in train:
            if field in LISTS:
                counts.update(value for value, _ in row[field])
            elif row[field] is not None:
                counts[row[field]] += 1
        kept = sorted(value for value, count in counts.items() if count >= min_count)
        found[field] = {value: i + 1 for i, value in enumerate(kept)}
    return found


def expected_row(row: dict, vocabularies: dict[str, dict[int, int]], history: int) -> dict:
    expected = {name: row[name] for name in ("sample_id", "click", "buy")}
    expected |= {f"f{field}": vocabularies[field].get(row[field], 0) for field in [*USER, *IMPRESSION]}
    for field in LISTS:
        known = [(vocabularies[field][value], weight) for value, weight in row[field] if value in vocabularies[field]]
        known = sorted(known, key=lambda pair: pair[1])[-history:]
        expected |= {f"f{field}": [i for i, _ in known], f"f{field}_weight": [w for _, w in known]}
    return expected


def read(out: Path, split: str) -> list[dict]:
    return pq.read_table(out / split).to_pylist()


@pytest.mark.parametrize(("suffix", "min_count", "history"), [("", 10, 50), (".gz", 14, 3), ("", 1, 1)])
def test_rows_vocabularies_and_lists_against_a_loop(tmp_path: Path, suffix: str, min_count: int, history: int) -> None:
    schema = ali_ccp.prepare(write_files(tmp_path / "in", suffix), tmp_path / "out", min_count, history)
    train, test = joined("train"), joined("test")
    vocabularies = expected_vocabularies(train[:180], min_count)
    for split, rows in {"train": train[:180], "valid": train[180:], "test": test}.items():
        assert read(tmp_path / "out", split) == [expected_row(row, vocabularies, history) for row in rows]
        assert schema["rows"][split] == len(rows)
        assert schema["labels"]["buy"]["positives"][split] == sum(row["buy"] for row in rows)
        assert schema["edges"][0]["changed"][split] == sum(row["buy"] > row["click"] for row in rows)
        for name in schema["unseen_in_train"].get(split, {}):
            zeros = sum(row[name[1:]] not in vocabularies[name[1:]] for row in rows)
            assert schema["unseen_in_train"][split][name] == zeros

    tables = {**schema["sparse"], **schema["lists"]}
    assert {name[1:]: entry["rows"] - 1 for name, entry in tables.items()} == {
        field: len(values) for field, values in vocabularies.items()
    }
    written: dict = {field: {} for field in vocabularies}
    for entry in pq.read_table(tmp_path / "out/vocabularies.parquet").to_pylist():
        written[entry["field"][1:]][entry["value"]] = entry["id"]
    assert written == vocabularies
    assert schema == json.loads((tmp_path / "out/schema.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("schema.json", "test", "train", "valid", "vocabularies.parquet")
    ]

    types = pq.read_schema(tmp_path / "out/train/part-0.parquet")
    for name in [*ali_ccp.USER, *ali_ccp.IMPRESSION]:
        assert types.field(name).type == pa.int64()
    for name in ali_ccp.LISTS:
        assert types.field(name).type == pa.list_(pa.int64())
        assert types.field(f"{name}_weight").type == pa.list_(pa.float32())


def test_blocks_and_row_groups_change_nothing_but_their_number(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in")
    whole = ali_ccp.prepare(source, tmp_path / "whole")
    small = ali_ccp.prepare(source, tmp_path / "small", block_bytes=2000, row_group_rows=16)
    assert small == whole
    for split in writing.SPLITS:
        assert read(tmp_path / "small", split) == read(tmp_path / "whole", split)
    assert pq.ParquetFile(tmp_path / "small/train/part-0.parquet").num_row_groups == 12
    assert pq.ParquetFile(tmp_path / "whole/train/part-0.parquet").num_row_groups == 1


def test_ids_are_counted_across_many_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.integers(500, size=rng.integers(1, 90)) * 1_000_003 for _ in range(60)]
    counts = ids.Counts()
    monkeypatch.setattr(ids, "WAITING_IDS", 16)
    for block in blocks:
        counts.add(block, np.full(len(block), 2))
    total = Counter(np.concatenate(blocks).tolist())
    assert counts.at_least(10).tolist() == sorted(value for value, count in total.items() if 2 * count >= 10)


def test_lines_without_features_and_a_history_that_is_empty_everywhere(tmp_path: Path) -> None:
    common = [f"{line.split(',')[0]},0," for line in HALVES["train"]["common_features"]]
    samples = [",".join([*line.split(",")[:4], "0", ""]) for line in HALVES["train"]["sample_skeleton"]]
    source = write_files(tmp_path / "in", common_features_train=common, sample_skeleton_train=samples)
    schema = ali_ccp.prepare(source, tmp_path / "out")
    assert {entry["rows"] for entry in schema["sparse"].values()} == {1}
    for row in [*read(tmp_path / "out", "train"), *read(tmp_path / "out", "test")]:
        assert {row[name] for name in [*ali_ccp.USER, *ali_ccp.IMPRESSION]} == {0}
        assert [row[name] for name in ali_ccp.LISTS] == [[]] * 4


def changed(kind: str, row: int, column: int, text: str) -> dict[str, list[str]]:
    """A file of the train half with one value changed."""
    lines = list(HALVES["train"][kind])
    values = lines[row].split(",")
    values[column] = text
    lines[row] = ",".join(values)
    return {f"{kind}_train": lines}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (changed("sample_skeleton", 150, 1, "2"), r"skeleton_train\.csv: row 151, click: 2 is neither 0 nor 1; drop"),
        (changed("sample_skeleton", 150, 2, ""), r"train\.csv: row 151, buy: an empty field is neither 0 nor 1; drop"),
        (
            changed("sample_skeleton", 99, 3, "0123456789abcdef"),
            r"train\.csv: row 100, common_feature_index: '0123456789abcdef' is in no line of the common features; give",
        ),
        (changed("sample_skeleton", 99, 3, ""), r"train\.csv: row 100, common_feature_index: None is in no line"),
        (changed("sample_skeleton", 40, 0, "x"), r"skeleton_train\.csv: row 41, sample_id: .*'x'; give the publisher"),
        (changed("sample_skeleton", 40, 4, "1,2"), r"skeleton_train\.csv: row 41: Expected 6 columns, got 7"),
        (
            changed("sample_skeleton", 40, 5, "205\x021\x031.0\x01206\x02b\x031.0"),
            r"skeleton_train\.csv: row 41, feature_list: item '206,b,1\.0' is not a field, an id and a value; give",
        ),
        (
            changed("common_features", 20, 2, "101\x021\x031.0\x01121\x022"),
            r"features_train\.csv: row 21, feature_list: item '121,2' is not a field, an id and a value; give",
        ),
        (changed("common_features", 3, 2, "101\x02\x031"), r"row 4, feature_list: item '101,,1' is not"),
        (changed("common_features", 3, 2, "\x01" * 3), r"row 4, feature_list: item '' is not"),
        ({"common_features_train": []}, r"common_features_train\.csv: .*[Ee]mpty"),
        ({"sample_skeleton_train": HALVES["train"]["sample_skeleton"][:9]}, r"train\.csv has 9 rows; at least 10"),
    ],
)
def test_an_error_names_row_and_column_and_leaves_nothing(
    tmp_path: Path, files: dict[str, list[str]], message: str
) -> None:
    source = write_files(tmp_path / "in", **files)
    for block_bytes in (2000, 1 << 20):
        with pytest.raises(UserError, match=message) as caught:
            ali_ccp.prepare(source, tmp_path / "out", block_bytes=block_bytes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_files_that_are_missing_or_cut(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", ".gz")
    with pytest.raises(UserError, match="min_count: 0 is not positive"):
        ali_ccp.prepare(source, tmp_path / "out", min_count=0)
    with pytest.raises(UserError, match="history: 0 is not positive"):
        ali_ccp.prepare(source, tmp_path / "out", history=0)
    path = source / "common_features_test.csv.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"features_test\.csv\.gz: Truncated compressed stream; copy or download it"):
        ali_ccp.prepare(source, tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"source: no common_features_test\.csv or .*\.gz at .*in; .*https"):
        ali_ccp.prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
