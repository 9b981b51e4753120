"""Census-Income: labels, ids, split and errors on a made file; figures and a logistic regression on the publisher's."""

import gzip
import io
import json
import os
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mtlrec.datasets import census_income, writing
from mtlrec.errors import UserError

SHARED = Path(os.environ.get("MTLREC_SHARED", Path(__file__).resolve().parents[3] / "../shared"))
REAL = SHARED / "data/census-income/census-income.test.gz"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"no {REAL}; set MTLREC_SHARED to the folder above data/")


def made_row(i: int, **changes: str) -> str:
    values = dict.fromkeys(census_income.COLUMNS, "Some code")
    values |= {name: str(i) for name in [*census_income.DENSE, "instance_weight"]}
    values |= {"education": "Children", "marital_stat": "Divorced", "income_50k": "- 50000."}
    return ", ".join((values | changes).values())


def write_rows(folder: Path, rows: list[str], name: str = "census-income.data") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def read_all(out: Path) -> list[dict]:
    rows = [row for split in writing.SPLITS for row in pq.read_table(out / split).to_pylist()]
    return sorted(rows, key=lambda row: row["row_id"])


def test_labels_ids_and_missing_values_of_a_made_file(tmp_path: Path) -> None:
    rows = [made_row(i, race="?" if i % 3 == 0 else "B" if i % 3 == 1 else "A") for i in range(60)]
    rows[1] = made_row(1, education="Masters degree(MA MS MEng MEd MSW MBA)", income_50k="50000+.")
    rows[2] = made_row(2, education="Some college but no degree", marital_stat="Never married")
    rows[3] = made_row(3, education="Associates degree-occup /vocational", race="Not in universe")
    schema = census_income.prepare(write_rows(tmp_path / "in", rows), tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert [row["row_id"] for row in found] == list(range(60))
    assert [(r["income"], r["never_married"], r["college"]) for r in found[:4]] == [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, 0),
        (0, 0, 1),
    ]
    ids = {"A": 1, "B": 2}
    names = json.loads((tmp_path / "out/vocabularies.json").read_text(encoding="utf-8"))["race"]
    assert names[:3] == [None, "A", "B"]
    assert [r["race"] for r in found[4:9]] == [ids["B"], ids["A"], 0, ids["B"], ids["A"]]
    assert found[3]["race"] == 0
    assert found[7]["age"] == 7.0
    assert schema["rows"] == {"total": 60, "train": 40, "valid": 10, "test": 10}
    assert json.loads((tmp_path / "out/schema.json").read_text(encoding="utf-8")) == schema


def test_a_value_that_train_does_not_have_is_id_0_in_test(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in", [made_row(i, year=f"y{i}") for i in range(60)])
    schema = census_income.prepare(source, tmp_path / "out")
    assert set(pq.read_table(tmp_path / "out/test")["year"].to_pylist()) == {0}
    assert sorted(pq.read_table(tmp_path / "out/train")["year"].to_pylist()) == list(range(1, 41))
    assert schema["sparse"]["year"]["rows"] == 41


def test_task_columns_and_the_weight_are_no_inputs(tmp_path: Path) -> None:
    schema = census_income.prepare(write_rows(tmp_path / "in", [made_row(i) for i in range(60)]), tmp_path / "out")
    inputs = {*schema["dense"], *schema["sparse"], *schema["lists"]}
    assert not inputs & {"education", "marital_stat", "income_50k", "instance_weight", "row_id", *schema["labels"]}
    assert len(inputs) == len(census_income.COLUMNS) - 4
    assert set(pq.read_schema(tmp_path / "out/train/part-0.parquet").names) == {
        *inputs,
        *schema["keys"],
        *schema["labels"],
    }


def test_both_halves_in_a_folder_are_pooled_and_the_seed_decides_the_split(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in", [made_row(i) for i in range(30)])
    test_half = "\n".join(made_row(i) for i in range(30, 60))
    (source / "census-income.test.gz").write_bytes(gzip.compress(test_half.encode()))
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        census_income.prepare(source, tmp_path / out, seed=seed)
    a, b, c = (pq.read_table(tmp_path / out / "train") for out in "abc")
    assert a.equals(b)
    assert not a["row_id"].equals(c["row_id"])
    assert [row["age"] for row in read_all(tmp_path / "a")] == [float(i) for i in range(60)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([made_row(i) for i in range(9)] + [made_row(9, income_50k="maybe")], r"row 10, income_50k: 'maybe'"),
        (["1, 2, 3"], r"Expected 42 columns"),
        ([made_row(0), made_row(1, age="old")], r"age|old|CSV conversion error"),
    ],
)
def test_a_file_of_another_format_is_named_in_one_line(tmp_path: Path, rows: list[str], message: str) -> None:
    source = write_rows(tmp_path / "in", rows)
    with pytest.raises(UserError, match=message) as caught:
        census_income.prepare(source, tmp_path / "out")
    assert str(caught.value).startswith("census-income.data:")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_files_and_a_folder_of_someone_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no census-income\.data"):
        census_income.prepare(tmp_path, tmp_path / "out")
    source = write_rows(tmp_path / "in", [made_row(i) for i in range(60)])
    (tmp_path / "out/train").mkdir(parents=True)
    pq.write_table(pa.table({"mine": [1]}), tmp_path / "out/train/part-0.parquet")
    with pytest.raises(UserError, match=r"no schema\.json"):
        census_income.prepare(source, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/train/part-0.parquet").column_names == ["mine"]


def test_no_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(census_income.urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded .*--source"):
        census_income.prepare(None, tmp_path / "out")


@pytest.mark.parametrize("nested", [True, False])
def test_the_download_is_read_from_the_archive_without_extracting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    halves = {
        "../census-income.data": "\n".join(made_row(i) for i in range(40)),
        "census-income.test": "\n".join(made_row(i) for i in range(40, 60)),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as outer:
        if nested:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w:gz") as tar:
                for name, text in halves.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
            outer.writestr("census.tar.gz", inner.getvalue())
        else:
            for name, text in halves.items():
                outer.writestr(f"{name}.gz", gzip.compress(text.encode()))
    monkeypatch.setattr(census_income.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(archive.getvalue()))
    schema = census_income.prepare(None, tmp_path / "out")
    assert schema["rows"]["total"] == 60
    assert [row["age"] for row in read_all(tmp_path / "out")] == [float(i) for i in range(60)]
    assert sorted(path.name for path in tmp_path.rglob("census-income*")) == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("census")
    census_income.prepare(REAL, out)
    return out


@needs_real
def test_the_publishers_test_half(real: Path) -> None:
    schema = json.loads((real / "schema.json").read_text(encoding="utf-8"))
    assert schema["rows"] == {"total": 99762, "train": 66508, "valid": 16627, "test": 16627}
    positives = {task: sum(entry["positives"].values()) for task, entry in schema["labels"].items()}
    # Counted in the raw file with zgrep: "50000+.", "Never married", and the six degrees.
    assert positives == {"income": 6186, "never_married": 43143, "college": 19456}
    assert schema["undecidable"] == []


@needs_real
def test_ids_map_back_to_the_raw_text_wherever_train_has_it(real: Path) -> None:
    options = pa_csv.ReadOptions(column_names=census_income.COLUMNS)
    with gzip.open(REAL) as file:
        raw = pa_csv.read_csv(
            file,
            options,
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(census_income.SPARSE, pa.string())),
        )
    names = json.loads((real / "vocabularies.json").read_text(encoding="utf-8"))
    test = pq.read_table(real / "test").slice(0, 300).to_pylist()
    texts = raw.take([row["row_id"] for row in test]).to_pylist()
    for row, text in zip(test, texts, strict=True):
        for column in census_income.SPARSE:
            expected = text[column].strip()
            known = expected in names[column]
            assert names[column][row[column]] == (expected if known else None)
            assert known or row[column] == 0


@needs_real
@pytest.mark.slow
def test_a_logistic_regression_reaches_the_known_figures(real: Path) -> None:
    pytest.importorskip("sklearn")
    from benchmarks import logistic_regression

    arguments = [
        str(real),
        "--log1p",
        "wage_per_hour,capital_gains,capital_losses,stock_dividends",
        "--max-iterations",
        "100",
    ]
    results = logistic_regression.run(logistic_regression._parser().parse_args(arguments))
    auc = {result["label"]: result["auc"] for result in results}
    assert auc["income"] > 0.935
    assert auc["never_married"] > 0.990
    assert auc["college"] > 0.875
