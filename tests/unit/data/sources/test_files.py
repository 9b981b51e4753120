"""Which files a pattern finds: each once, nothing hidden, however folders are linked."""

import os
from pathlib import Path

import pytest

from mtlrec.data.sources.files import find_files, store_of
from mtlrec.errors import DataError


def found(root: Path, *patterns: str) -> list[str]:
    return [file.below_root for file in find_files(store_of(str(root)), patterns)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.parquet",
        ".b.parquet",
        "_c.parquet",
        "_SUCCESS",
        "_temporary/0/d.parquet",
        ".hid/e.parquet",
        "sub/f.pq",
        "sub/_h.parquet",
        "sub/000000_0",
        "sub/words.txt",
        "_day=1/g.parquet",
    ):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train", "_day=1/g.parquet a.parquet sub/000000_0 sub/f.pq"),
        ("train/**", "_day=1/g.parquet a.parquet sub/000000_0 sub/f.pq sub/words.txt"),
        ("train/**/*.parquet", "_day=1/g.parquet a.parquet"),
        ("train/*", "_day=1/g.parquet a.parquet sub/000000_0 sub/f.pq"),
        ("train/_*", "_c.parquet _SUCCESS _day=1/g.parquet"),
        ("train/_temporary/**/*", "_temporary/0/d.parquet"),
        ("train/.hid/*", ".hid/e.parquet"),
    ],
)
def test_what_is_hidden_is_found_by_who_names_it(tree: Path, pattern: str, names: str) -> None:
    if pattern == "train/_*":  # what it names is taken, whatever it is; a folder by the same rules as ever
        (tree / "train" / "_temporary" / "0" / "d.parquet").unlink()
        (tree / "train" / "_temporary" / "0").rmdir()
        (tree / "train" / "_temporary").rmdir()
    assert sorted(found(tree, pattern)) == sorted(f"train/{name}" for name in names.split())


def test_links_lead_to_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.parquet").write_text("")
    for name in ("l1", "l2"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "train")
    (tmp_path / "train" / "link.parquet").symlink_to(tmp_path / "train" / "a.parquet")
    for pattern in ("train", "train/**", "train/**/*.parquet", "train/*"):
        assert found(tmp_path, pattern) == ["train/a.parquet"]


def test_a_file_has_many_names(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.parquet").write_text("")
    names = ("train/*", "./train/a.parquet", "train/../train/*", str(tmp_path / "train" / "a.parquet"))
    assert found(tmp_path, *names) == ["train/a.parquet"]


@pytest.mark.parametrize(
    ("root", "pattern", "message"),
    [
        ("~nobody-of-this-name/x", "*", "data.root ~nobody-of-this-name/x: "),
        (".", "a\0b", "cannot be listed"),
        (".", "x[1].parquet", r"no file matches .*; check the path; a name's own \[ is written \[\[\]"),
    ],
)
def test_paths_that_are_none(root: str, pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_files(store_of(root), [pattern])


def test_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Not of their age: a copy of the files has the same rows in the same order."""
    for age, name in enumerate(("b.parquet", "c/a.parquet", "a.parquet"), 1):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_text("")
        os.utime(tmp_path / "train" / name, (age, age))
    names = ["train/a.parquet", "train/b.parquet", "train/c/a.parquet"]
    assert found(tmp_path, "train") == found(tmp_path, "train/**/*.parquet") == names
