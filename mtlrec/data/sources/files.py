"""The files of a split, found by pattern, in sorted order, on a disk or in any store that pyarrow or fsspec opens.

A root is a folder or a URI (`s3://bucket/logs?region=eu-west-1`, `gs://`, `hdfs://`, and what fsspec knows). A pattern
below it is a file, a glob with `*`, `?`, `[ab]` and `**`, or a folder, of which every Parquet file is taken that is not
hidden (`.x`, `_temporary`), once, however many links lead to it. `key=value` in the names of folders are columns, as
Hive and Spark write them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from mtlrec.config.base import without_secrets
from mtlrec.errors import DataError
from mtlrec.io import one_line

PARQUET = ("", ".parquet", ".parq", ".pq")
"""Endings of the files that are taken of a folder; a vocabulary may lie beside them."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
"""Before a read over the network is tried again; the next pause is twice as long, and so on."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class File:
    """A file as it was when the job began; `name` is what messages call it, `key` what its store does."""

    name: str
    key: str
    below_root: str
    size: int
    modified: int | None

    @property
    def partition(self) -> dict[str, str | None]:
        """The columns that the folders' names give."""
        pairs = [part.split("=", 1) for part in self.below_root.split("/")[:-1] if "=" in part.lstrip("=")]
        return {unquote(column): None if value == HIVE_NULL else unquote(value) for column, value in pairs}


@dataclass(frozen=True)
class Store:
    """A root and the file system it lies in."""

    root: str
    system: fs.FileSystem
    base: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.system, fs.LocalFileSystem)

    def name(self, key: str) -> str:
        if self.is_local:
            return key
        below = key.removeprefix(self.base).lstrip("/")
        return f"{self.root.partition('?')[0].rstrip('/')}/{below}" if below else self.root


@lru_cache(maxsize=8)
def store_of(root: str) -> Store:
    """Opens the file system of a root. Raises DataError where nothing knows its scheme or it cannot be reached."""
    if "://" not in root:
        try:
            return Store(root, fs.LocalFileSystem(), str(Path(root).expanduser()))
        except RuntimeError as error:
            raise DataError(f"data.root {root}: {one_line(error)}") from None
    try:
        system, base = _open(root)
    except (pa.ArrowException, OSError, ValueError, ImportError, KeyError) as error:
        raise DataError(
            f"data.root {without_secrets(root)}: cannot be opened ({without_secrets(one_line(error))})"
        ) from None
    return Store(without_secrets(root), system, base.rstrip("/"))


def _open(root: str) -> tuple[fs.FileSystem, str]:
    try:
        system, base = fs.FileSystem.from_uri(root)
    except pa.ArrowInvalid as error:
        if "nrecognized filesystem" not in str(error):
            raise
        import fsspec

        foreign, base = fsspec.core.url_to_fs(root)
        system = fs.PyFileSystem(fs.FSSpecHandler(foreign))
    return system, base


def above_partitions(folder: str) -> tuple[str, str]:
    """`logs/date=2026-11-22/hour=3` -> (`logs`, `date=2026-11-22/hour=3`): a root under which those are columns."""
    parts = folder.split("/")
    first = len(parts)
    while first and "=" in parts[first - 1].lstrip("="):
        first -= 1
    return "/".join(parts[:first]) or ("/" if folder.startswith("/") else "."), "/".join(parts[first:])


def split_root(path: str) -> tuple[str, str]:
    """A path, glob or URI -> the root, which has no wildcards and no `key=value`, and the pattern below it."""
    address, query = path.partition("?")[::2] if "://" in path else (path, "")
    parts = address.rstrip("/").split("/")
    if "://" not in path and Path(path).exists():  # whatever its name looks like
        first = len(parts) - 1
        parts[first] = escape(parts[first])
    else:
        first = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
        first = max(first, 3) if "://" in address else first  # scheme and host stay together
    root, folders = above_partitions("/".join(parts[:first]) or ("/" if address.startswith("/") else "."))
    pattern = "/".join(([escape(folders)] if folders else []) + parts[first:])
    return root + (f"?{query}" if query else ""), pattern or "."


def find_files(store: Store, patterns: Sequence[str]) -> list[File]:
    """Every file that matches, once whatever its names, by pattern and then by name.

    Raises DataError where a pattern matches nothing, or something that is neither a file nor a folder.
    """
    found: dict[str, File] = {}
    for pattern in patterns:
        if "://" in pattern:
            raise DataError(f"{pattern}: a URI belongs into data.root; patterns are relative to it")
        base, parts = store.base, pattern.split("/")
        if pattern.startswith("/"):
            if not store.is_local:
                raise DataError(f"{pattern}: starts with a slash; patterns are relative to data.root {store.root}")
            base = "/"
        try:
            infos = sorted(
                _expand(store.system, base, [part for part in parts if part not in ("", ".")]),
                key=lambda info: info.path,
            )
            if not infos:
                where = store.name(f"{base.rstrip('/')}/{pattern.lstrip('/')}")
                remedy = "check the path; a name's own [ is written [[]" if "[" in pattern else "check the path"
                raise DataError(f"no file matches {where}; {remedy}")
            for info in infos:
                for file in _files_of(store, info, pattern):
                    found.setdefault(os.path.realpath(file.key) if store.is_local else file.key, file)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{store.name(base)}: cannot be listed ({one_line(error)})") from None
    return list(found.values())


def _files_of(store: Store, info: fs.FileInfo, pattern: str) -> Iterator[File]:
    """A link that leads nowhere is a file too: one that cannot be read."""
    if info.type == fs.FileType.Directory:
        inside = [one for one in _below(store.system, info.path)[1] if Path(one.path).suffix in PARQUET]
        infos = sorted(inside, key=lambda one: one.path)
        if not infos:
            what = f"{store.name(info.path)}: matches {pattern} but is a folder without Parquet files"
            raise DataError(f"{what}; name those by a glob that do not end in .parquet, .parq, .pq or nothing")
    elif info.type != fs.FileType.Unknown:
        infos = [info]
    else:
        raise DataError(f"{store.name(info.path)}: matches {pattern} but is no file")
    for one in infos:
        below_root = one.path.removeprefix(store.base).lstrip("/")
        yield File(store.name(one.path), one.path, below_root, one.size or 0, one.mtime_ns)


def _is_hidden(name: str) -> bool:
    """As Spark has it: `.x`, `_SUCCESS` and `_temporary` are, the partition `_day=1` is not."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _expand(system: fs.FileSystem, base: str, parts: Sequence[str]) -> list[fs.FileInfo]:
    """What `parts` match below `base`, one part of the path at a time; only folders that can match are listed. What is
    hidden matches only a part that begins as it does."""
    if not parts:
        info = system.get_file_info(base)
        return [info] if info.type != fs.FileType.NotFound or _is_link(system, base) else []
    head, *rest = parts
    if head == "**":
        folders, files = _below(system, base)
        if not rest:
            return files
        found = [info for folder in [base, *folders] for info in _expand(system, folder, rest)]
        return list({info.path: info for info in found}.values())
    if not re.search(r"[*?\[]", head):
        return _expand(system, f"{base.rstrip('/')}/{head}" if base else head, rest)
    found = []
    if system.get_file_info(base).type == fs.FileType.Directory:
        for one in _children(system, base):
            name = Path(one.path).name
            if fnmatchcase(name, head) and (not _is_hidden(name) or head.startswith(name[0])):
                found += _expand(system, one.path, rest) if rest else [one]
    return found


def _children(system: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """Broken links too, which pyarrow does not list."""
    if isinstance(system, fs.LocalFileSystem):
        infos: list[fs.FileInfo] = system.get_file_info([str(path) for path in Path(folder).iterdir()])
    else:
        infos = system.get_file_info(fs.FileSelector(folder))
    return infos


def _below(system: fs.FileSystem, base: str) -> tuple[list[str], list[fs.FileInfo]]:
    """Folders and files anywhere below a folder, but nothing hidden, and no folder that links lead to again."""
    if not isinstance(system, fs.LocalFileSystem):
        inside = system.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        shown = [one for one in inside if not any(map(_is_hidden, one.path.removeprefix(base).strip("/").split("/")))]
        folders = [one.path for one in shown if one.type == fs.FileType.Directory]
        return folders, [one for one in shown if one.type == fs.FileType.File]
    folders, files, seen, waiting = [], [], {os.path.realpath(base)}, [base] if os.path.isdir(base) else []
    while waiting:
        for one in _children(system, waiting.pop()):
            if _is_hidden(Path(one.path).name):
                continue
            if one.type != fs.FileType.Directory:
                files.append(one)
            elif os.path.realpath(one.path) not in seen:
                seen.add(os.path.realpath(one.path))
                folders.append(one.path)
                waiting.append(one.path)
    return folders, files


def _is_link(system: fs.FileSystem, path: str) -> bool:
    return isinstance(system, fs.LocalFileSystem) and Path(path).is_symlink()


def persistently(attempt: Callable[[], Result], store: Store, retries: int) -> Result:
    """The attempt's result; where a store over the network fails, it is made again, `retries` times."""
    for tried in range(retries):
        try:
            return attempt()
        except OSError:
            if store.is_local:
                raise
            time.sleep(min(FIRST_PAUSE_S * 2**tried, LONGEST_PAUSE_S))
    return attempt()
